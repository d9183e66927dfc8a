//! The data of the orders: made when first needed, kept until the end.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::super::data::{self, Fill};
use super::super::tree::Tree;
use super::super::work::{CProgram, LARGE, NEW, SOURCES, Work};
use super::{Order, Stage, list_name};

impl Stage {
    /// Makes what an order needs and is not there yet.
    pub(super) fn make_data(&self, order: &Order) -> Result<()> {
        match order.work {
            Work::Read | Work::ReadAgain | Work::RandomRead => {
                return once("large", |dir| {
                    let mut file = File::create(dir.join(LARGE))?;
                    data::write_large(&mut file, self.sizes.large_mib)
                });
            }
            Work::Compile => {
                return once("source", |dir| {
                    fs::create_dir(dir.join(SOURCES))?;
                    for (name, text) in CProgram::new(self.sizes.sources).files {
                        fs::write(dir.join(SOURCES).join(name), text)?;
                    }
                    Ok(())
                });
            }
            Work::Untar | Work::RemoveNew => self.make_archive()?,
            Work::Git => self.make_repository()?,
            Work::Missing => {
                self.make_lists("missing", order, &self.tree.missing_names(self.sizes.missing.0))?;
            }
            Work::Append => self.make_list_of_files("append", order, self.sizes.append)?,
            Work::SmallFiles | Work::SmallFilesBusy => {
                self.make_list_of_files("small", order, self.sizes.small)?
            }
            _ => {}
        }
        for count in [1, order.layers] {
            once(&format!("l{count}"), |dir| {
                // Contents are read in six layers and in the plain directory only.
                let how = if [1, 6].contains(&count) { Fill::Bytes } else { Fill::Sparse };
                for (at, layer) in self.tree.layers(count).iter().enumerate() {
                    let dir = dir.join(at.to_string());
                    fs::create_dir(&dir)?;
                    data::write(layer, &dir, how)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn make_list_of_files(&self, kind: &str, order: &Order, count: usize) -> Result<()> {
        let paths: Vec<String> =
            self.tree.small_files(count).into_iter().map(|(path, _)| path.to_owned()).collect();
        self.make_lists(kind, order, &paths)
    }

    /// One list for each process: neighbours stay together.
    fn make_lists(&self, kind: &str, order: &Order, paths: &[String]) -> Result<()> {
        let share = paths.len().div_ceil(order.processes);
        for (at, paths) in paths.chunks(share).enumerate() {
            fs::write(list_name(kind, order.processes, at), paths.join("\n") + "\n")?;
        }
        Ok(())
    }

    fn make_archive(&self) -> Result<()> {
        if Path::new("new.tar").exists() {
            return Ok(());
        }
        let place = Path::new("archived");
        fs::create_dir_all(place.join(NEW))?;
        data::write(&Tree::new(self.sizes.archive).entries, &place.join(NEW), Fill::Bytes)?;
        tool(Command::new("tar").args(["-cf", "new.tar", "-C", "archived", NEW]))?;
        fs::remove_dir_all(place)?;
        Ok(())
    }

    fn make_repository(&self) -> Result<()> {
        once("repository.git", |dir| {
            let place = Path::new("committed");
            fs::create_dir(place)?;
            data::write(&Tree::new(self.sizes.git).entries, place, Fill::Bytes)?;
            let git = |words: &[&str]| {
                let identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"];
                let quiet = ["-c", "gc.auto=0"];
                tool(Command::new("git").args(identity).args(quiet).args(words).current_dir(place))
            };
            git(&["init", "-q", "-b", "main"])?;
            git(&["add", "--all", "--force"])?;
            git(&["commit", "-q", "-m", "All of it"])?;
            fs::remove_dir(dir)?;
            let target = dir.display().to_string();
            tool(Command::new("git").args(["clone", "-q", "--bare", "committed", &target]))?;
            tool(Command::new("git").args(["-C", &target, "repack", "-q", "-a", "-d"]))?;
            fs::remove_dir_all(place)?;
            Ok(())
        })
    }
}

/// Makes a directory with its content, unless it is there. One whose making failed
/// is removed again.
fn once(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(());
    }
    fs::create_dir(path)?;
    fill(path).inspect_err(|_| {
        // The first error is the one to tell.
        fs::remove_dir_all(path).ok();
    })
}

fn tool(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, stderr.trim());
    Ok(())
}
