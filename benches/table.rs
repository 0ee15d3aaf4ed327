//! The table that a benchmark prints, row by row as they are measured.

/// Prints rows; gathers what is to be said under them.
pub(crate) struct Table {
    part: &'static str,
    notes: Vec<String>,
}

/// What a figure must reach, and whether it did.
pub(crate) struct Bar {
    /// The bar in words.
    pub(crate) words: String,
    /// Whether it was reached.
    pub(crate) met: bool,
}

impl Bar {
    /// At most this.
    pub(crate) fn at_most(bar: f64, value: f64) -> Option<Self> {
        Some(Self { words: format!("at most {bar}"), met: value <= bar })
    }

    /// At least this.
    pub(crate) fn at_least(bar: f64, value: f64) -> Option<Self> {
        Some(Self { words: format!("at least {bar}"), met: value >= bar })
    }
}

impl Table {
    /// Prints the head.
    pub(crate) fn begin() -> Self {
        println!(
            "{:<10} {:<44} {:>12} {:>12} {:>6}  {:<16} bar",
            "", "medians", "reprise", "qemu-s-d", "ratio", "unit"
        );
        Self { part: "", notes: Vec::new() }
    }

    /// Begins the rows of a part.
    pub(crate) fn part(&mut self, name: &'static str) {
        self.part = name;
    }

    /// One figure of ours.
    pub(crate) fn row(&mut self, what: &str, ours: f64, unit: &str, bar: Option<Bar>) {
        self.print(what, ours, None, unit, bar);
    }

    /// One figure of ours beside the peer's, if it has one. The bar is the ratio's.
    pub(crate) fn beside(
        &mut self,
        what: &str,
        ours: f64,
        peer: Option<f64>,
        unit: &str,
        ratio_min: Option<f64>,
    ) {
        let bar = peer.zip(ratio_min).and_then(|(peer, bar)| Bar::at_least(bar, ours / peer));
        self.print(what, ours, peer, unit, bar);
    }

    /// Something to be said under the table; once.
    pub(crate) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn print(&mut self, what: &str, ours: f64, peer: Option<f64>, unit: &str, bar: Option<Bar>) {
        let figure = |value: f64| if value < 1000.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        let (theirs, ratio) =
            peer.map_or_else(Default::default, |peer| (figure(peer), format!("{:.2}", ours / peer)));
        let bar = bar.map_or_else(String::new, |bar| {
            format!("{}: {}", bar.words, if bar.met { "met" } else { "MISSED" })
        });
        let line = format!(
            "{:<10} {what:<44} {:>12} {theirs:>12} {ratio:>6}  {unit:<16} {bar}",
            std::mem::take(&mut self.part),
            figure(ours)
        );
        println!("{}", line.trim_end());
    }

    /// Prints the notes.
    pub(crate) fn end(self) {
        for note in self.notes {
            println!("note: {note}");
        }
    }
}
