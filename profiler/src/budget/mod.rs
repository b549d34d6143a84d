//! What probing may cost a target, what it does cost, and what is switched when it costs too much. Pure: no kernel, no
//! clock, and never what is measured.

pub mod governor;
pub mod node;
pub mod price;

use std::fmt;
use std::str::FromStr;

/// The share of the CPU time that a target uses, or that a node has, which probing may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Everything is measured, whatever it costs.
    Off,
    /// At most this share, as 0.02.
    Share(f64),
}

/// Smallest and largest share: below, nothing could ever be probed; above, a budget protects nobody.
const RANGE: std::ops::RangeInclusive<f64> = 0.001..=0.5;

impl Budget {
    /// What is meant when nothing is said: 2 %.
    pub const DEFAULT: Budget = Budget::Share(0.02);
    /// The same of a node: 1 % of all of its CPU time.
    pub const NODE: Budget = Budget::Share(0.01);

    /// The share, where there is one.
    pub fn share(self) -> Option<f64> {
        match self {
            Budget::Off => None,
            Budget::Share(share) => Some(share),
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Budget, String> {
        if text == "off" {
            return Ok(Budget::Off);
        }
        let share = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok()).map(|n| n / 100.0);
        match share {
            Some(share) if RANGE.contains(&share) => Ok(Budget::Share(share)),
            Some(_) => Err(format!("must be from {}% to {}%, or off", RANGE.start() * 100.0, RANGE.end() * 100.0)),
            None => Err("must be a percentage of CPU time, as 2%, or off".to_owned()),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Off => f.write_str("off"),
            Budget::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that we take what is in range and refuse the rest with what would be good.
    #[test]
    fn budgets_are_parsed() {
        assert_eq!("off".parse(), Ok(Budget::Off));
        assert_eq!("2%".parse(), Ok(Budget::DEFAULT));
        assert_eq!("0.5%".parse(), Ok(Budget::Share(0.005)));
        for bad in ["0%", "51%", "-1%", "nan%", "inf%"] {
            assert!(bad.parse::<Budget>().unwrap_err().contains("0.1% to 50%"), "{bad}");
        }
        for bad in ["2", "", "%", "two%", "on"] {
            assert!(bad.parse::<Budget>().unwrap_err().contains("as 2%"), "{bad}");
        }
        assert_eq!(Budget::DEFAULT.to_string(), "2%");
    }
}
