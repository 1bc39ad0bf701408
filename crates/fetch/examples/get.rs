//! `rondel get` without Python, for profiling the engine: `cargo run --release --example get -- URL …`.

fn main() {
    match rondel_fetch::cli::main(std::env::args_os().skip(1)) {
        rondel_fetch::cli::End::Status(status) => std::process::exit(status),
        rondel_fetch::cli::End::Signal(signal) => rondel_fetch::cli::end_by_signal(signal),
    }
}
