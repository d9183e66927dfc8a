//! `coracle exec`.

use super::{parse, run};
use crate::spec::Exec;
use crate::store::{Status, Store};

/// Run a command in a running container.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: as of 'coracle run'.")]
pub(super) struct Args {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,

    /// Give the command a terminal of its own
    #[arg(short, long)]
    tty: bool,

    #[command(flatten)]
    env: run::EnvArgs,

    /// Working directory in the container [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// User, and group, in the container: names or numbers [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parse::user)]
    user: Option<String>,

    /// The container
    #[arg(value_name = "CONTAINER")]
    name: String,

    /// Command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs a command in a container; returns its exit code.
pub(super) fn exec(args: Args) -> anyhow::Result<u8> {
    if args.command.first().is_some_and(String::is_empty) {
        anyhow::bail!("the command is empty");
    }
    let exec = Exec {
        interactive: args.interactive,
        tty: args.tty,
        env: args.env.read(run::host_env)?,
        workdir: run::workdir(args.workdir.as_deref())?,
        user: args.user,
        command: args.command,
    };
    let store = Store::open()?;
    match store.find(&args.name)?.state()? {
        Some((state, _)) if state.is_paused() => {
            anyhow::bail!(
                "container '{0}' is paused: 'coracle unpause {0}' lets it go on",
                args.name
            )
        }
        Some((state, _)) if state.status == Status::Running => {
            Ok(crate::exec::exec(&state, &exec, &store.cache())?)
        }
        _ => anyhow::bail!("container '{}' is not running", args.name),
    }
}
