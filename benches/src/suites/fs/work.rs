//! What a file system is asked to do.

use serde::{Deserialize, Serialize};

/// How much. The same for every candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sizes {
    /// Objects of the tree the layers are made of.
    pub(crate) entries: usize,
    /// Objects of the archive that is unpacked.
    pub(crate) archive: usize,
    /// Missing names, and how often each is asked for.
    pub(crate) missing: (usize, u32),
    /// Files appended to.
    pub(crate) append: usize,
    /// Small files read.
    pub(crate) small: usize,
    /// The large file, MiB.
    pub(crate) large_mib: u64,
    /// Random reads of it.
    pub(crate) preads: u64,
    /// Objects in the git repository.
    pub(crate) git: usize,
    /// C files compiled.
    pub(crate) sources: usize,
    /// How long an idle server is watched, seconds.
    pub(crate) idle_s: u32,
}

impl Sizes {
    /// Of a result to quote.
    pub(crate) const FULL: Self = Self {
        entries: 60_000,
        archive: 8000,
        missing: (4000, 30),
        append: 3000,
        small: 8000,
        large_mib: 1024,
        preads: 200_000,
        git: 2165,
        sources: 48,
        idle_s: 10,
    };

    /// Of a look: about an eighth.
    pub(crate) const QUICK: Self = Self {
        entries: 8000,
        archive: 1000,
        missing: (2000, 8),
        append: 400,
        small: 1500,
        large_mib: 128,
        preads: 20_000,
        git: 400,
        sources: 8,
        idle_s: 2,
    };

    /// Memory that data and changes take together, bytes: a tree of 13 KiB a file
    /// as a directory and in layers, one that is unpacked, the large file and one
    /// written, and half as much again for the programs.
    pub(crate) fn memory(self) -> u64 {
        let objects = (2 * self.entries + 3 * self.archive) as u64;
        (objects * (14 << 10) + 2 * (self.large_mib << 20)) * 3 / 2
    }
}

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Mounting, until the root answers.
    Mount,
    /// `find` that prints the status of everything, on a fresh mount.
    Find,
    /// The same a second time.
    FindAgain,
    /// Names that are not there.
    Missing,
    /// `tar` of everything into a pipe.
    Tar,
    /// Unpacking an archive.
    Untar,
    /// `rm -rf` of what was unpacked.
    RemoveNew,
    /// A line appended to files of the lower layers.
    Append,
    /// `rm -rf` of a directory of the lower layers.
    RemoveLower,
    /// A large file written, and synced.
    Write,
    /// A large lower file read once.
    Read,
    /// The same a second time.
    ReadAgain,
    /// Random blocks of a large lower file.
    RandomRead,
    /// A git clone, and the status of it.
    Git,
    /// Compiling a C program, two compilers at a time.
    Compile,
    /// Small files read, on a fresh mount.
    SmallFiles,
    /// The same while other programs want every processor.
    SmallFilesBusy,
    /// Memory of the server after `find`.
    Memory,
    /// Activity of the server while nobody asks for anything, after `find`.
    Idle,
}

/// The directory of the lower layers that is removed.
pub(crate) const REMOVED: &str = "usr/share/doc";
/// The large file, in its layer.
pub(crate) const LARGE: &str = "large-file";
/// What is unpacked, cloned or written, below the root of the mount.
pub(crate) const NEW: &str = "new";
/// Directory of the C program, in its layer.
pub(crate) const SOURCES: &str = "program";

impl Work {
    /// Whether the work changes files: a plain directory gets a copy then.
    pub(crate) fn changes(self) -> bool {
        use Work::*;
        matches!(self, Untar | RemoveNew | Append | RemoveLower | Write | Git | Compile)
    }

    /// Whether it means something only where a program serves the mount.
    pub(crate) fn needs_a_server(self) -> bool {
        matches!(self, Self::Memory | Self::Idle)
    }

    /// Whether it means something only where there is a mount.
    pub(crate) fn needs_a_mount(self) -> bool {
        self.needs_a_server() || self == Self::Mount
    }
}

/// A C program of many files, and what it prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CProgram {
    /// File names and texts.
    pub(crate) files: Vec<(String, String)>,
    /// Its output.
    pub(crate) output: String,
}

/// Functions in each C file.
const FUNCTIONS: u64 = 60;

impl CProgram {
    /// One of so many C files, besides `main.c`.
    pub(crate) fn new(sources: usize) -> Self {
        let mut value: u64 = 1;
        let mut files = Vec::new();
        let mut header = "#include <stdint.h>\n".to_owned();
        let mut main = "#include <inttypes.h>\n#include <stdio.h>\n#include \"program.h\"\n\n\
                        int main(void)\n{\n\tuint64_t x = 1;\n"
            .to_owned();
        for file in 0..sources as u64 {
            let mut text = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\
                            #include \"program.h\"\n\n"
                .to_owned();
            let mut calls = String::new();
            for function in 0..FUNCTIONS {
                let (add, shift) = (file * 1000 + function, 7 + (file + function) % 20);
                text.push_str(&format!(
                    "static uint64_t step_{function}(uint64_t x)\n{{\n\tfor (int i = 0; i < 3; i++)\n\
                     \t\tx = (x ^ (x >> {shift})) * UINT64_C(0x9e3779b97f4a7c15) + {add};\n\
                     \treturn x;\n}}\n\n"
                ));
                calls.push_str(&format!("\tx = step_{function}(x);\n"));
                for _ in 0..3 {
                    value = (value ^ (value >> shift))
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .wrapping_add(add);
                }
            }
            text.push_str(&format!(
                "uint64_t part_{file}(uint64_t x)\n{{\n{calls}\treturn x;\n}}\n"
            ));
            header.push_str(&format!("uint64_t part_{file}(uint64_t x);\n"));
            main.push_str(&format!("\tx = part_{file}(x);\n"));
            files.push((format!("part_{file}.c"), text));
        }
        main.push_str("\tprintf(\"%\" PRIx64 \"\\n\", x);\n\treturn 0;\n}\n");
        files.push(("program.h".to_owned(), header));
        files.push(("main.c".to_owned(), main));
        Self { files, output: format!("{value:x}\n") }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_c_program_prints_what_is_foretold() {
        let program = CProgram::new(2);
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in &program.files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let built = std::process::Command::new("sh")
            .args(["-c", "gcc -Wall -Werror -Wno-unused-function -o program *.c && ./program"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&built.stderr);
        assert_eq!(String::from_utf8_lossy(&built.stdout), program.output, "{stderr}");
    }
}
