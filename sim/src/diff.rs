//! Where two runs part: both are followed side by side, each in a thread with a world of its own, and compared by every
//! line and every record of their traces, in order. Nothing is kept but a few steps before, so that runs of any length
//! can be compared.

use crate::follow::{Entry, Followed, Follower};
use crate::report::{self, Outcome};
use crate::run::run_followed;
use crate::subject::Subject;
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Happenings that are sent at once.
const BATCH: usize = 512;
/// Batches that one run may be ahead of the other.
const AHEAD: usize = 16;

/// How two runs compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// They are the same run, which took so many lines and records.
    None(u64),
    /// They part.
    Parts(Box<Parting>),
}

/// Where two runs part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parting {
    /// Lines and records that they share.
    pub shared: u64,
    /// The last of those.
    pub before: Vec<Entry>,
    /// How the first run goes on, beginning with the step at which they part; empty where it has ended.
    pub a: Vec<Entry>,
    /// How the second goes on.
    pub b: Vec<Entry>,
}

/// Sends what happens to whoever compares, and goes quiet when nobody listens any more.
struct Sender {
    to: SyncSender<Vec<Entry>>,
    batch: Vec<Entry>,
}

impl Follower for Sender {
    fn follow(&mut self, at_ns: u64, what: Followed<'_>) {
        self.batch.extend(Entry::of(at_ns, what));
        if self.batch.len() == BATCH {
            self.flush();
        }
    }
}

impl Sender {
    fn flush(&mut self) {
        let _ = self.to.send(std::mem::take(&mut self.batch));
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.flush();
    }
}

/// One run's happenings, in order.
struct Stream {
    from: Receiver<Vec<Entry>>,
    batch: std::vec::IntoIter<Entry>,
}

impl Iterator for Stream {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            if let Some(entry) = self.batch.next() {
                return Some(entry);
            }
            self.batch = self.from.recv().ok()?.into_iter();
        }
    }
}

/// Runs both and compares them; `context` happenings are kept before and after the parting. Says how each run ended, too.
#[must_use]
pub fn diff(a: &Subject, b: &Subject, context: usize) -> (Difference, [Outcome; 2]) {
    std::thread::scope(|scope| {
        let begin = |subject: &Subject| {
            let (to, from) = sync_channel(AHEAD);
            let subject = subject.clone();
            let run = scope.spawn(move || {
                let sender = Sender { to, batch: Vec::with_capacity(BATCH) };
                run_followed(&subject.plan, subject.script.as_deref(), Box::new(sender))
            });
            (Stream { from, batch: Vec::new().into_iter() }, run)
        };
        let ((a, run_a), (b, run_b)) = (begin(a), begin(b));
        let difference = compare(a, b, context);
        let outcome = |run: std::thread::ScopedJoinHandle<'_, Outcome>| {
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        (difference, [outcome(run_a), outcome(run_b)])
    })
}

/// Compares two runs as they happen.
fn compare(
    mut a: impl Iterator<Item = Entry>,
    mut b: impl Iterator<Item = Entry>,
    context: usize,
) -> Difference {
    let mut before = VecDeque::with_capacity(context + 1);
    let mut shared = 0;
    loop {
        let (first, second) = match (a.next(), b.next()) {
            (None, None) => return Difference::None(shared),
            (Some(first), Some(second)) if first == second => {
                shared += 1;
                before.push_back(first);
                if before.len() > context {
                    before.pop_front();
                }
                continue;
            }
            parted => parted,
        };
        return Difference::Parts(Box::new(Parting {
            shared,
            before: before.into(),
            a: first.into_iter().chain(a).take(context.max(1)).collect(),
            b: second.into_iter().chain(b).take(context.max(1)).collect(),
        }));
    }
}

impl Parting {
    /// The parting as a person reads it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("the runs share {} lines and records", self.shared);
        let line = |entry: &Entry| format!("{}  {}", report::time(entry.at_ns), entry.what);
        if let Some(last) = self.before.last() {
            let _ = write!(text, ", up to {}; the last of them:\n\n", report::time(last.at_ns).trim());
        } else {
            text.push_str(": they differ from the start\n");
        }
        for entry in &self.before {
            let _ = writeln!(text, "  {}", line(entry));
        }
        text.push_str("\nthen they part:\n");
        for (name, rest) in [("A", &self.a), ("B", &self.b)] {
            text.push('\n');
            for (at, entry) in rest.iter().enumerate() {
                let _ = writeln!(text, "{name}{} {}", if at == 0 { '>' } else { ' ' }, line(entry));
            }
            if rest.is_empty() {
                let _ = writeln!(text, "{name}> has ended");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[&str]) -> Vec<Entry> {
        let entry = |(at, text): (usize, &&str)| Entry::of(at as u64, Followed::Line(text));
        texts.iter().enumerate().filter_map(entry).collect()
    }

    fn parting(a: &[&str], b: &[&str]) -> Parting {
        match compare(lines(a).into_iter(), lines(b).into_iter(), 2) {
            Difference::Parts(parting) => *parting,
            Difference::None(_) => panic!("they differ"),
        }
    }

    #[test]
    fn the_first_difference_is_shown_with_what_surrounds_it() {
        let found = parting(&["a", "b", "c", "x", "y", "z"], &["a", "b", "c", "d"]);
        assert_eq!((found.shared, &found.before), (3, &lines(&["a", "b", "c"])[1..].to_vec()));
        let text = found.text();
        assert!(text.contains("A>      0.000003 ms  x\nA       0.000004 ms  y\n"), "{text}");
        assert!(text.contains("B>      0.000003 ms  d\n"), "{text}");
    }

    #[test]
    fn a_run_that_ends_first_differs() {
        let text = parting(&["a"], &["a", "b"]).text();
        assert!(text.contains("A> has ended") && text.contains("B>      0.000001 ms  b"), "{text}");
        let same = compare(lines(&["a"]).into_iter(), lines(&["a"]).into_iter(), 2);
        assert_eq!(same, Difference::None(1));
    }
}
