//! Patterns of names and paths: `*` stands for any characters, `/` among them, and `?` for one. Never what is matched.

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Any text is a pattern.
    pub fn new(pattern: &str) -> Glob {
        Glob(pattern.to_owned())
    }

    /// Whether it stands for all of `text`. Takes no longer than the product of both lengths.
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        // Where the last `*` is, and up to where it stands for something.
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(&c) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
                _ => {
                    let Some((at, taken)) = star else { return false };
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
            }
        }
        pattern[p..].iter().all(|&c| c == b'*')
    }

    /// The text before the first `*` or `?`, and whether that is all.
    pub fn start(&self) -> (&str, bool) {
        let end = self.0.find(['*', '?']).unwrap_or(self.0.len());
        (&self.0[..end], end == self.0.len())
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("web", "web", true),
            ("web", "webs", false),
            ("web*", "web", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("?", "", false),
            ("w?b", "wab", true),
            ("/usr/*/server", "/usr/local/bin/server", true),
            ("/usr/*/server", "/usr/local/bin/servers", false),
            ("*a*b", "xaxbxab", true),
            ("*a*b", "xaxbxa", false),
            ("a**b?", "ab1", true),
            ("[a]", "[a]", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    /// Check that a hostile pattern takes no exponential time.
    #[test]
    fn many_stars() {
        assert!(!Glob::new(&"a*".repeat(500)).matches(&"a".repeat(400)));
        assert!(!Glob::new(&format!("{}b", "*a".repeat(200))).matches(&"a".repeat(4000)));
    }
}
