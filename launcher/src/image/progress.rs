//! Bars on a terminal, for what takes time; nothing anywhere else.

use std::io::{self, IsTerminal as _, Read};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::digest::Digest;

/// Where bars are drawn.
#[derive(Debug, Default)]
pub struct Progress(Option<MultiProgress>);

impl Progress {
    /// Draws on standard error when that is a terminal, unless `quiet`.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self((!quiet && io::stderr().is_terminal()).then(MultiProgress::new))
    }

    /// A bar for `bytes` bytes of a layer, which says what is done to it.
    #[must_use]
    pub fn bar(&self, what: &str, layer: &Digest, bytes: u64) -> ProgressBar {
        let Some(all) = &self.0 else { return ProgressBar::hidden() };
        let bar = all.add(ProgressBar::new(bytes));
        let style = ProgressStyle::with_template(
            "{prefix:12} {msg:10} {wide_bar:.cyan} {bytes:>10}/{total_bytes:<10}",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(layer.short().to_owned());
        bar.set_message(what.to_owned());
        bar
    }
}

/// Counts what passes on a bar.
#[derive(Debug)]
pub struct Counted<'a, R> {
    input: R,
    bar: &'a ProgressBar,
}

impl<'a, R> Counted<'a, R> {
    /// Counts on `bar`.
    pub fn new(input: R, bar: &'a ProgressBar) -> Self {
        Self { input, bar }
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.bar.inc(count as u64);
        Ok(count)
    }
}
