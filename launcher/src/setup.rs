//! Edits of another engine's configuration, as text → text.
//!
//! # Theory of operation
//!
//! An engine's file is TOML that somebody else owns: comments, order and every key but
//! ours stay as they are. What is changed is kept as an [`Edit`], the text before and
//! after. Taking it back gives the text before, byte for byte, as long as the file is as
//! we left it; where its owner has changed it since, only our keys go back to what they
//! were ([`Edit::undone`]).

pub mod database;

use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, Table, value};

/// What cannot be edited, and why.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SetupError {
    /// The file is no TOML.
    #[error("is not valid TOML: {0}")]
    Syntax(String),
    /// What should be a table, or a string, is something else.
    #[error("has something else than {expected} at '{at}'")]
    Shape {
        /// The dotted key.
        at: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The store's driver is fixed to another one.
    #[error(
        "sets the driver of the store to \"{0}\": with \"overlay\", what is in it could not be seen \
         any more; move it first (podman save, podman system reset), or use --network alone"
    )]
    OtherDriver(String),
}

/// Which keys are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// containers.conf(5): `network_cmd_path` in `[engine]`.
    Containers,
    /// storage.conf(5): `mount_program` in `[storage.options.overlay]`, and `driver` in
    /// `[storage]`, without which Podman does not look at the rest.
    Storage,
}

const ENGINE: &[&str] = &["engine"];
const STORAGE: &[&str] = &["storage"];
const OVERLAY: &[&str] = &["storage", "options", "overlay"];

impl File {
    /// Its name in the directory `containers`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Containers => "containers.conf",
            Self::Storage => "storage.conf",
        }
    }

    /// The keys that are ours, each with the table it is in.
    fn keys(self) -> &'static [(&'static [&'static str], &'static str)] {
        match self {
            Self::Containers => &[(ENGINE, "network_cmd_path")],
            Self::Storage => &[(STORAGE, "driver"), (OVERLAY, "mount_program")],
        }
    }

    /// The text with `program` in it; the text itself when it is there.
    ///
    /// # Errors
    /// When the text is no TOML, has something else where our keys belong, or pins a
    /// store of another driver.
    pub fn edited(self, text: &str, program: &str) -> Result<String, SetupError> {
        let mut document = parse(text)?;
        for (tables, key) in self.keys() {
            let wanted = if *key == "driver" { "overlay" } else { program };
            let table = table(&mut document, tables)?;
            let present = match table.get(key) {
                None => None,
                Some(item) => Some(item.as_str().ok_or_else(|| shape(tables, key, "a string"))?),
            };
            if *key == "driver" && present.is_some_and(|is| !is.is_empty() && is != wanted) {
                return Err(SetupError::OtherDriver(present.unwrap_or_default().to_owned()));
            }
            if present == Some(wanted) {
                continue;
            }
            match table.get_mut(key).and_then(Item::as_value_mut) {
                // What stands around the old value (a comment on its line) stays.
                Some(old) => {
                    let decor = old.decor().clone();
                    *old = wanted.into();
                    *old.decor_mut() = decor;
                }
                None => {
                    table.insert(key, value(wanted));
                }
            }
        }
        Ok(document.to_string())
    }
}

/// A change of a file that can be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// The text before; None when there was no file.
    pub before: Option<String>,
    /// The text after.
    pub after: String,
}

impl Edit {
    /// What to write to take it back, from the text there is now; None when there was no
    /// file and only we have written to it.
    ///
    /// # Errors
    /// When the text now is no TOML, or has something else where our keys belong.
    pub fn undone(&self, file: File, now: &str) -> Result<Option<String>, SetupError> {
        if now == self.after {
            return Ok(self.before.clone());
        }
        let mut document = parse(now)?;
        let before = parse(self.before.as_deref().unwrap_or_default())?;
        let after = parse(&self.after)?;
        for (tables, key) in file.keys() {
            let text = |item: Option<&Item>| item.and_then(Item::as_str).map(str::to_owned);
            let (was, set) = (item(&before, tables, key), item(&after, tables, key));
            let is = text(item(&document, tables, key));
            // Set to something else since: that is the owner's.
            if is != text(set) || text(was) == text(set) {
                continue;
            }
            let table = table(&mut document, tables)?;
            match was {
                Some(item) => table.insert(key, item.clone()),
                None => table.remove(key),
            };
        }
        // Tables that only we had a use for.
        for (tables, _) in file.keys() {
            for depth in (1..=tables.len()).rev() {
                let (name, outer) = tables[..depth].split_last().expect("depth begins at 1");
                let there = item(&before, outer, name).is_some();
                let outer = table(&mut document, outer)?;
                if !there && outer.get(name).and_then(Item::as_table).is_some_and(Table::is_empty) {
                    outer.remove(name);
                }
            }
        }
        Ok(Some(document.to_string()))
    }
}

fn parse(text: &str) -> Result<DocumentMut, SetupError> {
    text.parse::<DocumentMut>().map_err(|error| {
        let what = error.to_string();
        let line = what.lines().map(str::trim).filter(|line| !line.is_empty());
        SetupError::Syntax(line.collect::<Vec<_>>().join(" "))
    })
}

fn shape(tables: &[&str], key: &str, expected: &'static str) -> SetupError {
    let at = tables.iter().copied().chain([key]).collect::<Vec<_>>().join(".");
    SetupError::Shape { at, expected }
}

/// The table at these names, made when missing (without a header of its own where only
/// what is in it needs one).
fn table<'a>(document: &'a mut DocumentMut, names: &[&str]) -> Result<&'a mut Table, SetupError> {
    let mut table = document.as_table_mut();
    for (at, name) in names.iter().enumerate() {
        let item = table.entry(name).or_insert_with(|| {
            let mut fresh = Table::new();
            fresh.set_implicit(at + 1 < names.len());
            Item::Table(fresh)
        });
        table = item
            .as_table_mut()
            .ok_or_else(|| shape(&names[..at], name, "a table with a header"))?;
    }
    Ok(table)
}

fn item<'a>(document: &'a DocumentMut, tables: &[&str], key: &str) -> Option<&'a Item> {
    let mut names = tables.iter().chain([&key]);
    names.try_fold(document.as_item(), |item, name| item.get(name))
}

/// A graph driver whose store is in this graph root and which is not overlay: the one
/// that a database pins ([`database`]), else by the names in it, where no overlay store
/// is there besides.
#[must_use]
pub fn other_store(names: &[String], pinned: Option<&str>) -> Option<String> {
    const OTHERS: [&str; 5] = ["vfs", "btrfs", "zfs", "aufs", "devicemapper"];
    if let Some(driver) = pinned {
        return (driver != "overlay").then(|| driver.to_owned());
    }
    let has = |driver: &str| names.iter().any(|name| *name == format!("{driver}-layers"));
    if has("overlay") {
        return None;
    }
    OTHERS.iter().find(|driver| has(driver)).map(|driver| (*driver).to_owned())
}

/// A path of a configuration file with its `$NAME` and `${NAME}` put in; one that is not
/// set is empty (Go's `os.ExpandEnv`, which Podman calls).
#[must_use]
pub fn expanded(path: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, behind) = braced.unwrap_or_else(|| {
            let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            after.split_at(after.find(|c| !of_name(c)).unwrap_or(after.len()))
        });
        out.push_str(&value(name).unwrap_or_default());
        rest = behind;
    }
    out + rest
}

/// The lines of two texts that differ, each behind `-` or `+`, with up to `around` lines
/// before and after, behind a space.
#[must_use]
pub fn line_diff(before: &str, after: &str, around: usize) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    // Longest common subsequence: configuration files are short.
    let mut longest = vec![vec![0_u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            longest[i][j] = if old[i] == new[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || i < old.len() && longest[i + 1][j] >= longest[i][j + 1] {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    let changed: Vec<usize> =
        lines.iter().enumerate().filter(|(_, (sign, _))| *sign != ' ').map(|(at, _)| at).collect();
    let near = |at: usize| changed.iter().any(|change| change.abs_diff(at) <= around);
    let shown = lines.iter().enumerate().filter(|(at, _)| near(*at));
    shown.map(|(_, (sign, line))| format!("{sign}{line}\n")).collect()
}

#[cfg(test)]
mod tests;
