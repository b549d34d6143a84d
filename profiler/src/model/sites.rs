//! Where tasks were spawned: the sites of each type, and how often each was met in a sample. Never how a site is found.

use rustc_hash::FxHashMap;

use super::snapshot::SpawnSiteSnapshot;
use super::task::{SiteInfo, TypeInfo};
use crate::event::TypeId;

/// Most sites of one type that are told apart. More are none that a person would read.
const MAX_SITES: usize = 32;

/// Sites that were met, of one target.
#[derive(Debug, Default)]
pub struct Sites {
    met: FxHashMap<TypeId, Vec<(SiteInfo, u64)>>,
}

impl Sites {
    /// A spawn of a type was found to be from a site. False where there are too many already.
    pub fn met(&mut self, kind: TypeId, site: &SiteInfo) -> bool {
        let sites = self.met.entry(kind).or_default();
        if let Some((_, sampled)) = sites.iter_mut().find(|(known, _)| known == site) {
            *sampled += 1;
            return true;
        }
        let room = sites.len() < MAX_SITES;
        if room {
            sites.push((site.clone(), 1));
        }
        room
    }

    /// The sites of a type: those that its binary tells, and those that were met; the most frequent first.
    pub fn of(&self, kind: TypeId, info: &TypeInfo) -> Vec<SpawnSiteSnapshot> {
        let mut sites: Vec<(SiteInfo, u64)> = self.met.get(&kind).cloned().unwrap_or_default();
        for site in &info.spawn_sites {
            if !sites.iter().any(|(met, _)| met == site) {
                sites.push((site.clone(), 0));
            }
        }
        // A function says less than the lines in it: it is left out where one of these is known.
        if sites.iter().any(|(site, sampled)| site.exact && *sampled > 0) || info.spawn_sites.iter().any(|s| s.exact) {
            sites.retain(|(site, sampled)| site.exact || *sampled > 0);
        }
        sites.sort_by(|(a, met_a), (b, met_b)| met_b.cmp(met_a).then_with(|| a.place.cmp(&b.place)));
        let snapshot = |(site, sampled): (SiteInfo, u64)| SpawnSiteSnapshot {
            name: site.name,
            place: site.place,
            exact: site.exact,
            sampled,
        };
        sites.into_iter().map(snapshot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str, exact: bool) -> SiteInfo {
        SiteInfo { name: name.into(), place: name.into(), exact }
    }

    fn check(told: &[(&str, bool)], met: &[(&str, bool)], expected: &[(&str, u64)]) {
        let info = TypeInfo {
            spawn_sites: told.iter().map(|&(name, exact)| site(name, exact)).collect(),
            ..TypeInfo::default()
        };
        let mut sites = Sites::default();
        met.iter().for_each(|&(name, exact)| assert!(sites.met(TypeId(0), &site(name, exact))));
        let found = sites.of(TypeId(0), &info);
        assert_eq!(found.iter().map(|site| (site.name.as_str(), site.sampled)).collect::<Vec<_>>(), expected);
        assert_eq!(sites.of(TypeId(1), &TypeInfo::default()), []);
    }

    /// Check that we list what the binary tells and what was met, once each.
    #[test]
    fn sites_are_listed_once() {
        check(&[("a:1", true)], &[], &[("a:1", 0)]);
        check(&[("a:1", true), ("b:2", true)], &[("b:2", true), ("b:2", true)], &[("b:2", 2), ("a:1", 0)]);
        check(&[], &[("c:3", true), ("a:1", true), ("c:3", true)], &[("c:3", 2), ("a:1", 1)]);
    }

    /// Check that we leave out the function where its lines are known, unless spawns were met of which no more is.
    #[test]
    fn a_function_gives_way_to_its_lines() {
        check(&[("in f", false)], &[], &[("in f", 0)]);
        check(&[("in f", false)], &[("f:1", true)], &[("f:1", 1)]);
        check(&[("f:1", true)], &[("in g", false)], &[("in g", 1), ("f:1", 0)]);
    }

    /// Check that sites are bounded.
    #[test]
    fn sites_are_bounded() {
        let mut sites = Sites::default();
        let met = (0..100).filter(|n| sites.met(TypeId(0), &site(&n.to_string(), true))).count();
        assert_eq!(met, MAX_SITES);
        assert!(sites.met(TypeId(0), &site("0", true)));
    }
}
