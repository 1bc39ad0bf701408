//! Load generator and bare servers for the benchmarks.
//!
//! ```text
//! loadgen load TRANSPORT ADDRESS [--connections N] [--size BYTES] [--duration S] [--warmup S]
//!              [--pid PID] [--ca CERT.PEM] [--path /PATH]
//! loadgen hold TRANSPORT ADDRESS [the same options]
//! loadgen bare TRANSPORT [--path SOCKET] [--cert DIR]
//! loadgen cert DIR
//! ```
//!
//! `TRANSPORT` is tcp, unix, udp, tls or http. `load` keeps one request in flight on every connection and
//! prints one JSON object; `hold` opens the connections, exchanges one message on each, and then measures the
//! silent server; `bare` is the same echo service without Python, the limit that the loops are compared with.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `wire.rs` | one non-blocking connection of any transport |
//! | `exchange.rs` | what a request is, and when its answer is complete and right |
//! | `load.rs` | the closed loop and its figures |
//! | `bare.rs` | the bare servers |
//! | `process.rs` | CPU time and resident memory of the server under test |

mod args;
mod bare;
mod exchange;
mod load;
mod process;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = args::parse(std::env::args().skip(1)).and_then(|command| match command {
        args::Command::Load(options) => load::load(&options).map(|line| println!("{line}")),
        args::Command::Hold(options) => load::hold(&options).map(|line| println!("{line}")),
        args::Command::Bare(options) => bare::serve(&options).map_err(|error| error.to_string()),
        args::Command::Cert(directory) => wire::write_certificate(&directory),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("loadgen: {message}");
            ExitCode::FAILURE
        }
    }
}
