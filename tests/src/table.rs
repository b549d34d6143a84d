//! What a test compares, as a table: all rows are shown, and then all that are wrong fail it at once.

use std::fmt::Display;
use std::time::Instant;

/// Rows of truth and sight.
pub struct Table {
    title: String,
    begin: Instant,
    rows: Vec<Row>,
}

struct Row {
    what: String,
    truth: String,
    seen: String,
    right: bool,
}

impl Table {
    /// An empty table; the time that the test takes counts from here.
    pub fn new(title: impl Into<String>) -> Table {
        Table { title: title.into(), begin: Instant::now(), rows: Vec::new() }
    }

    /// Both must be equal.
    pub fn equal<T: PartialEq + Display>(&mut self, what: impl Into<String>, truth: T, seen: T) {
        let right = truth == seen;
        self.row(what, truth, seen, right);
    }

    /// `seen` must be within `per_cent` of the truth.
    pub fn within(&mut self, what: impl Into<String>, truth: f64, seen: f64, per_cent: f64) {
        let off = 100.0 * (seen - truth) / truth;
        self.row(
            what,
            format!("{truth:.6}"),
            format!("{seen:.6} ({off:+.2} %, of {per_cent} %)"),
            off.abs() <= per_cent,
        );
    }

    /// Something must hold.
    pub fn holds(&mut self, what: impl Into<String>, truth: impl Display, seen: impl Display, right: bool) {
        self.row(what, truth, seen, right);
    }

    fn row(&mut self, what: impl Into<String>, truth: impl Display, seen: impl Display, right: bool) {
        self.rows.push(Row { what: what.into(), truth: truth.to_string(), seen: seen.to_string(), right });
    }

    /// Shows the table.
    ///
    /// # Panics
    /// A row is wrong.
    pub fn finish(self) {
        // Tables of hundreds of equal rows say less than their number.
        const SHOWN: usize = 24;
        println!("\n{} ({:.1} s)", self.title, self.begin.elapsed().as_secs_f64());
        println!("  {:<46} {:>16} {:>16}", "", "truth", "seen");
        let (right, wrong): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(|row| row.right);
        for row in right.iter().take(SHOWN).chain(&wrong) {
            let mark = if row.right { "" } else { "   WRONG" };
            println!("  {:<46} {:>16} {:>16}{mark}", row.what, row.truth, row.seen);
        }
        if right.len() > SHOWN {
            println!("  and {} more that are right", right.len() - SHOWN);
        }
        assert!(!self.rows.is_empty(), "nothing was compared");
        let list: Vec<String> = wrong
            .iter()
            .take(SHOWN)
            .map(|row| format!("{}: {} is seen as {}", row.what, row.truth, row.seen))
            .collect();
        assert!(
            wrong.is_empty(),
            "{}: {} of {} are wrong: {}",
            self.title,
            wrong.len(),
            self.rows.len(),
            list.join("; ")
        );
    }
}
