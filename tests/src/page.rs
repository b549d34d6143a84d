//! A page of metrics in the text format, read without knowing who wrote it.

use std::collections::{BTreeMap, BTreeSet};

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A page.
#[derive(Clone, Debug)]
pub struct Page {
    pub samples: Vec<Sample>,
    /// Names of families, and their types.
    pub families: BTreeMap<String, String>,
}

impl Page {
    /// Reads a page.
    ///
    /// # Panics
    /// It is none, or has a series twice.
    pub fn parse(text: &str) -> Page {
        let mut page = Page { samples: Vec::new(), families: BTreeMap::new() };
        for line in text.lines().filter(|line| !line.is_empty()) {
            match line.strip_prefix("# TYPE ") {
                Some(family) => {
                    let (name, kind) = family.split_once(' ').unwrap_or_else(|| panic!("no type in `{line}`"));
                    assert!(page.families.insert(name.to_owned(), kind.to_owned()).is_none(), "`{name}` twice");
                }
                None if line.starts_with('#') => {}
                None => page.samples.push(sample(line).unwrap_or_else(|| panic!("failed to read `{line}`"))),
            }
        }
        let mut seen = BTreeSet::new();
        for sample in &page.samples {
            assert!(seen.insert((&sample.name, &sample.labels)), "the series is there twice: {sample:?}");
        }
        page
    }

    /// The series of a name with at least these labels.
    pub fn series<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
        })
    }

    /// Whether there is such a series.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.series(name, labels).next().is_some()
    }

    /// The value of the only such series.
    ///
    /// # Panics
    /// There is none, or there are several.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<&Sample> = self.series(name, labels).collect();
        assert_eq!(found.len(), 1, "{name}{labels:?} is {found:?}");
        found[0].value
    }

    /// The sum of all such series; 0 without one.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|sample| sample.value).sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(list) = rest.strip_prefix('{') {
        rest = list;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquote(quoted)?;
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    Some(Sample { name: name.to_owned(), labels, value: rest.split_whitespace().next()?.parse().ok()? })
}

/// The text up to the closing quote, and what follows that.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    loop {
        match letters.next()? {
            (at, '"') => return Some((value, &quoted[at + 1..])),
            (_, '\\') => value.push(match letters.next()?.1 {
                'n' => '\n',
                letter => letter,
            }),
            (_, letter) => value.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_braces_in_a_value_are_part_of_it() {
        let page =
            Page::parse("# TYPE a counter\na{x=\"1,\\\"}\\n\\\\\",y=\"\"} 2\na 3e2 17\nb_bucket{le=\"+Inf\"} +Inf\n");
        assert_eq!(page.value("a", &[("x", "1,\"}\n\\")]), 2.0);
        assert_eq!(page.sum("a", &[]), 302.0);
        assert_eq!(page.value("b_bucket", &[("le", "+Inf")]), f64::INFINITY);
        assert_eq!(page.families["a"], "counter");
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn a_series_is_there_once() {
        Page::parse("a{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 1\n");
    }
}
