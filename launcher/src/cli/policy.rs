//! `coracle policy`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::security::{LONGEST, read_text};
use super::{complain, print};
use crate::plan;
use crate::policy::{self, profile};
use crate::probe;
use crate::spec::Security;
use crate::text::printable_lines;

/// Look at policies, which `coracle run --policy` puts into force.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Tell in words what a policy allows, and what this host can enforce
    #[command(after_help = "Exit status: 0; 1 when the policy cannot be read, or requires what \
                            this host cannot enforce.")]
    Explain {
        /// The policy
        file: PathBuf,
    },
}

pub(super) fn policy(args: &Args) -> anyhow::Result<u8> {
    let Command::Explain { file } = &args.command;
    let security = apply(Security::default(), file, Vec::new(), Vec::new())?;
    let host = probe::probe(probe::id_map(), true);
    print(&printable_lines(&explain(&security, host.landlock)))?;
    let mut code = 0;
    for lack in plan::unenforced(&security, host.landlock) {
        complain(&lack.what);
        if lack.required {
            code = 1;
        }
    }
    Ok(code)
}

/// Reads a policy and puts it on top of what else is asked for.
pub(super) fn apply(
    mut security: Security,
    file: &Path,
    mut add: Vec<String>,
    mut drop: Vec<String>,
) -> anyhow::Result<Security> {
    let what = || format!("the policy {}", file.display());
    let text = read_text(file, LONGEST).with_context(what)?;
    let profile = profile::parse(&text).map_err(anyhow::Error::msg).with_context(what)?;
    add.extend(profile.add.iter().cloned());
    drop.extend(profile.drop.iter().cloned());
    security.capabilities =
        policy::merge_capabilities(&add, &drop).map_err(anyhow::Error::msg).with_context(what)?;
    profile.apply(&mut security);
    Ok(security)
}

fn explain(security: &Security, landlock: Option<u32>) -> String {
    let mut text = String::new();
    let names = policy::capability_names(security.capabilities);
    let names: Vec<&str> = names.iter().map(|n| n.trim_start_matches("CAP_")).collect();
    let list = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!("capabilities of its root: {list}"));
    line(match security.deny.join(" ") {
        denied if denied.is_empty() => "system calls: those of the default list".to_owned(),
        denied => format!("system calls: those of the default list, but {denied}"),
    });
    match &security.files {
        None => line("files: all that its mounts show".to_owned()),
        Some(files) => {
            line("files: /dev and /proc, and".to_owned());
            for rule in &files.beneath {
                line(format!("  {} below {}", rule.access.words(), rule.path.display()));
            }
        }
    }
    for (what, ports) in
        [("listens on", &security.ports.listen), ("connects to", &security.ports.connect)]
    {
        line(match ports {
            None => format!("{what} any TCP port"),
            Some(ports) if ports.is_empty() => format!("{what} no TCP port"),
            Some(ports) => {
                let list: String = ports.iter().map(|port| format!(" {port}")).collect();
                format!("{what} TCP ports{list} only")
            }
        });
    }
    match &security.egress {
        None => line("destinations: all that the caller reaches".to_owned()),
        Some(rules) => {
            line(
                "destinations, by netstack (--network netstack), the first that matches:"
                    .to_owned(),
            );
            let mut default = "";
            for rule in rules.split("[[rule]]\n") {
                let words = rule.replace(['"', '[', ']'], "").replace(" = ", " ");
                let words: Vec<&str> = words.lines().collect();
                match words.first().and_then(|word| word.strip_prefix("default ")) {
                    Some("allow") => default = "allow",
                    Some(_) => default = "deny",
                    None => line(format!("  {}", words.join(", ").replacen("action ", "", 1))),
                }
            }
            line(format!("  {default} all others"));
        }
    }
    line(match landlock {
        Some(version) => format!("this host: Landlock {version}"),
        None => "this host: no Landlock".to_owned(),
    });
    text
}
