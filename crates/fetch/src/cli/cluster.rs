//! What `rondel get --dask` has to know before the workers of a cluster do the rest: the files, with
//! their names and checksums settled, and where they are to go.

use std::ffi::OsString;
use std::path::{PathBuf, absolute};

use super::args::{Command, Output};
use super::{End, failed, gather, with_command};
use crate::engine;
use crate::error::{Error, Kind, Result};
use crate::job::Job;

/// A download that others are to do.
#[derive(Debug)]
pub struct Plan {
    /// The scheduler's address; None if the command line names none.
    pub scheduler: Option<String>,
    /// Whether JSON is to be printed.
    pub json: bool,
    /// Whether nothing but errors is to be printed.
    pub quiet: bool,
    /// The folder for the files, as an absolute path.
    pub directory: PathBuf,
    /// The files.
    pub jobs: Vec<Job>,
}

/// Read a command line and its lists; what cannot be read is told on standard error, and ends it.
pub fn plan(arguments: impl IntoIterator<Item = OsString>) -> std::result::Result<Plan, End> {
    with_command(arguments, settled)?.map_err(|error| failed(&error))
}

async fn settled(mut command: Command) -> Result<Plan> {
    let mut jobs = gather(&mut command).await?;
    let options = &command.options;
    engine::settle(&mut jobs, options);
    let directory = absolute(&options.directory).map_err(|error| {
        Error::new(Kind::Input, format!("{}: {error}", options.directory.display()))
    })?;
    Ok(Plan {
        scheduler: command.dask.take(),
        json: command.output == Output::Json,
        quiet: command.output == Output::Quiet,
        directory,
        jobs,
    })
}
