//! `coracle completion`.

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

fn script(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "coracle", &mut text);
    String::from_utf8_lossy(&text).into_owned()
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
}
