//! `coracle doctor`.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use serde_json::json;

use super::print;
use crate::doctor::{Degree, Finding, diagnose};
use crate::probe::health::health;
use crate::text::{self, printable};

/// Find out what on this host is in the way of containers, and what to do about it.
///
/// Looks at everything that containers need, tries it, and says for each that is not
/// well what works all the same and how to mend it. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 when everything works, though it may be less than it \
                        could be; 1 when something does not work.")]
pub(super) struct Args {
    /// Print for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn doctor(args: &Args) -> anyhow::Result<u8> {
    let findings = diagnose(&health());
    let works = findings.iter().all(|finding| finding.degree < Degree::Problem);
    if args.json {
        let all = json!({ "works": works, "findings": findings });
        print(&text::json(&all)?)?;
    } else {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        print(&told(&findings, io::stdout().is_terminal() && !plain))?;
    }
    Ok(u8::from(!works))
}

fn told(findings: &[Finding], colour: bool) -> String {
    let mut text = String::new();
    let mut line = |label: &str, shade: &str, said: &str| {
        let label = format!("{label:<8}");
        let label = if colour && !shade.is_empty() {
            format!("\x1b[{shade}m{label}\x1b[0m")
        } else {
            label
        };
        writeln!(text, "{label} {}", printable(said))
            .expect("a String takes all that is written to it");
    };
    for Finding { item, degree, found, works, fix } in findings {
        let (label, shade) = match degree {
            Degree::Fine => ("ok", "32"),
            Degree::Note => ("note", "33"),
            Degree::Problem => ("problem", "31"),
        };
        line(label, shade, &format!("{item}: {found}"));
        if let Some(works) = works {
            line("", "", &format!("works: {works}"));
        }
        if let Some(fix) = fix {
            line("", "", &format!("fix: {fix}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_alone() {
        let finding = Finding {
            item: "tun",
            degree: Degree::Problem,
            found: "gone\x1b[2J".to_owned(),
            works: Some("the rest".to_owned()),
            fix: Some("modprobe".to_owned()),
        };
        let want =
            "problem  tun: gone\\u{1b}[2J\n         works: the rest\n         fix: modprobe\n";
        assert_eq!(told(std::slice::from_ref(&finding), false), want);
        let coloured = told(&[finding], true);
        assert!(coloured.starts_with("\x1b[31mproblem \x1b[0m tun"), "{coloured:?}");
    }
}
