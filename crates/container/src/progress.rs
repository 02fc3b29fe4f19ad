//! Progress of long operations, on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use container_api::escape::escape;
use container_api::images::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::ProgressKind;

/// Shows progress in the way that `--progress` chose.
pub struct Shown {
    kind: Kind,
}

enum Kind {
    None,
    Plain(Plain),
    Bar { bar: Box<ProgressBar>, color: bool },
}

#[derive(Default)]
struct Plain {
    description: String,
    items: u64,
    last: Option<Instant>,
}

impl Shown {
    /// Nothing is shown before the first step.
    pub fn new(kind: ProgressKind) -> Shown {
        let bar = |color| {
            let target = ProgressDrawTarget::stderr_with_hz(10);
            let bar = Box::new(ProgressBar::with_draw_target(None, target));
            Kind::Bar { bar, color }
        };
        let kind = match kind {
            ProgressKind::Auto if io::stderr().is_terminal() => bar(false),
            ProgressKind::Auto | ProgressKind::None => Kind::None,
            ProgressKind::Plain => Kind::Plain(Plain::default()),
            ProgressKind::Ansi => bar(false),
            ProgressKind::Color => bar(true),
        };
        Shown { kind }
    }

    /// One step.
    pub fn update(&mut self, step: &Progress) {
        match &mut self.kind {
            Kind::None => {}
            Kind::Plain(plain) => plain.update(step),
            Kind::Bar { bar, color } => draw(bar, *color, step),
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Kind::Bar { bar, .. } = &self.kind {
            bar.finish_and_clear();
        }
    }
}

/// Without a total there is nothing to fill a bar of.
fn draw(bar: &ProgressBar, color: bool, step: &Progress) {
    let template = match (step.total.is_some(), color) {
        (true, false) => {
            "{spinner} {msg} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} {elapsed}"
        }
        (true, true) => {
            "{spinner:.green} {msg} [{bar:24.cyan}] {bytes}/{total_bytes} {bytes_per_sec} {elapsed}"
        }
        (false, false) => "{spinner} {msg} {bytes} {bytes_per_sec} {elapsed}",
        (false, true) => "{spinner:.green} {msg} {bytes} {bytes_per_sec} {elapsed}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(format!("{}{}", escape(&step.description), items(step)));
    if let Some(total) = step.total {
        bar.set_length(total.max(step.done));
    }
    bar.set_position(step.done);
}

fn items(step: &Progress) -> String {
    match step.total_items {
        Some(total) if total > 1 => format!(" {}/{total}", step.items),
        _ => String::new(),
    }
}

impl Plain {
    /// A line for each new step and item, and at least every five seconds of work.
    fn update(&mut self, step: &Progress) {
        let news = self.description != step.description || self.items != step.items;
        let late = self.last.is_none_or(|last| last.elapsed() > Duration::from_secs(5));
        if news || late {
            let _ = writeln!(io::stderr(), "{}", line(step));
            self.description.clone_from(&step.description);
            self.items = step.items;
            self.last = Some(Instant::now());
        }
    }
}

fn line(step: &Progress) -> String {
    let mut line = escape(&step.description).into_owned();
    if let Some(total) = step.total_items {
        line += &format!(" {}/{total}", step.items);
    }
    match step.total {
        Some(total) => line += &format!(" {}/{} bytes", step.done, total),
        None if step.done > 0 => line += &format!(" {} bytes", step.done),
        None => {}
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_escaped_and_complete() {
        let step = Progress {
            description: "Fetching\u{1b}[2J".into(),
            done: 5,
            total: Some(10),
            items: 1,
            total_items: Some(3),
        };
        assert_eq!(line(&step), "Fetching\\u{1b}[2J 1/3 5/10 bytes");
    }
}
