//! `coracle completion`.
//!
//! What clap generates knows commands and options. Names of containers and images are
//! put on top: the shell asks `ps` and `image ls` for them.

use std::fmt::Write as _;

use clap::Command;
use clap_complete::Shell;

use super::print;

/// Print the completions of a shell, for it to read.
///
/// bash: eval "$(coracle completion bash)"; zsh: coracle completion zsh >DIR/_coracle,
/// with DIR in $fpath; fish: coracle completion fish | source. The package has them
/// installed already.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn completion(args: &Args) -> anyhow::Result<u8> {
    print(&script(args.shell))?;
    Ok(0)
}

/// All of a shell's completions.
#[must_use]
pub fn script(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "coracle", &mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let takers = takers(&super::command(), &mut Vec::new());
    match shell {
        Shell::Bash => text + &bash(&takers),
        Shell::Fish => text + &fish(&takers),
        Shell::Zsh => zsh(&text),
        _ => text,
    }
}

/// What a command's words name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Containers,
    Images,
}

impl Named {
    /// The command that lists them, a line each.
    fn listed(self) -> &'static str {
        match self {
            Self::Containers => "coracle ps -a -q 2>/dev/null",
            Self::Images => {
                "coracle image ls 2>/dev/null | awk 'NR > 1 && $1 !~ /^</ { print $1 }'"
            }
        }
    }
}

/// The commands whose words are names, and of what.
fn takers(command: &Command, words: &mut Vec<String>) -> Vec<(Vec<String>, Named)> {
    let mut all = Vec::new();
    let named = command.get_positionals().find_map(|positional| {
        match positional.get_value_names()?.first()?.as_str() {
            "CONTAINER" => Some(Named::Containers),
            "IMAGE" => Some(Named::Images),
            _ => None,
        }
    });
    if let Some(named) = named {
        all.push((words.clone(), named));
    }
    for below in command.get_subcommands() {
        words.push(below.get_name().to_owned());
        all.extend(takers(below, words));
        words.pop();
    }
    all
}

/// A function around clap's.
fn bash(takers: &[(Vec<String>, Named)]) -> String {
    let mut cases = String::new();
    for (words, named) in takers {
        writeln!(cases, "        '{}'*) names=$({}) ;;", words.join(" "), named.listed())
            .expect("a String takes all that is written to it");
    }
    format!(
        r#"
_coracle_names() {{
    _coracle "$@"
    local word="${{COMP_WORDS[COMP_CWORD]}}" names=
    [[ $word == -* || $COMP_CWORD -lt 2 ]] && return
    case "${{COMP_WORDS[*]:1:COMP_CWORD-1}} " in
{cases}    esac
    COMPREPLY+=($(compgen -W "$names" -- "$word"))
}}
complete -F _coracle_names -o bashdefault -o default coracle
"#
    )
}

fn fish(takers: &[(Vec<String>, Named)]) -> String {
    let mut lines = String::new();
    for (words, named) in takers {
        let seen: Vec<String> =
            words.iter().map(|word| format!("__fish_seen_subcommand_from {word}")).collect();
        // A name may be that of a command, too: then it is one of an image.
        let other =
            if words.len() == 1 { "; and not __fish_seen_subcommand_from image" } else { "" };
        writeln!(
            lines,
            "complete -c coracle -n \"{}{other}\" -f -a \"({})\"",
            seen.join("; and "),
            named.listed().replace('$', "\\$")
        )
        .expect("a String takes all that is written to it");
    }
    lines
}

/// In place of files, where clap knows nothing better than those.
fn zsh(text: &str) -> String {
    let mut script = String::new();
    for line in text.lines() {
        let line = if line.contains(" -- The container") {
            line.replace(":_default'", ":_coracle_containers'")
        } else if line.contains(" -- Names, or beginnings of ids")
            || line.contains(" -- The image, then")
        {
            line.replace(":_default'", ":_coracle_images'")
        } else {
            line.to_owned()
        };
        script += &line;
        script.push('\n');
    }
    let mut functions = String::new();
    for (name, named) in [("containers", Named::Containers), ("images", Named::Images)] {
        write!(
            functions,
            "_coracle_{name}() {{\n    local -a names\n    names=(${{(f)\"$({})\"}})\n    \
             compadd -a names\n}}\n\n",
            named.listed()
        )
        .expect("a String takes all that is written to it");
    }
    // Defined before the first call.
    const END: &str = "if [ \"$funcstack[1]\"";
    script.replacen(END, &(functions + END), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_options_are_completed_in_every_shell() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = script(shell);
            for word in ["commit", "doctor", "read-only", "oci-archive"] {
                assert!(text.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn names_are_completed_wherever_they_are_meant() {
        let takers = takers(&super::super::command(), &mut Vec::new());
        let of = |words: &str| {
            let found = takers.iter().find(|(taker, _)| taker.join(" ") == words);
            found.map(|(_, named)| *named)
        };
        for words in ["stop", "rm", "exec", "logs", "commit", "top"] {
            assert_eq!(of(words), Some(Named::Containers), "{words}");
        }
        for words in ["run", "create", "image rm", "image save"] {
            assert_eq!(of(words), Some(Named::Images), "{words}");
        }
        for words in ["ps", "doctor", "image", "image import", "policy explain"] {
            assert_eq!(of(words), None, "{words}");
        }
        // Each has its place in every shell.
        let text = script(Shell::Zsh);
        for (named, function) in
            [(Named::Containers, "_coracle_containers"), (Named::Images, "_coracle_images")]
        {
            let count = takers.iter().filter(|(_, taken)| *taken == named).count();
            assert_eq!(text.matches(&format!(":{function}'")).count(), count, "{function}");
            assert_eq!(text.matches(&format!("{function}() {{")).count(), 1, "{function}");
            let [bash, fish] = [Shell::Bash, Shell::Fish].map(|shell| {
                let listed = named.listed();
                script(shell).replace("\\$", "$").matches(listed).count()
            });
            assert_eq!((bash, fish), (count, count), "{function}");
        }
    }
}
