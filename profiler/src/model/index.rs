//! Places of tasks by a word that identifies them. Never the tasks.

use hashbrown::HashTable;

/// Tables that a word may be in. A table grows alone: what is copied at a time is a twentieth, and a million tasks,
/// 50,000 in each, fill tables of 2^16 to three quarters, where a single one would be of 2^21 and half empty.
const TABLES: u64 = 20;
/// A table for fewer does not shrink.
const SMALL: usize = 256;

/// Spreads a word over 64 bits.
fn hash(word: u64) -> u64 {
    let product = u128::from(word) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
    (product >> 64) as u64 ^ product as u64
}

/// The table of a hash: by bits that neither choose the bucket nor mark it.
fn table(hash: u64) -> usize {
    (((hash >> 20 & 0xffff_ffff) * TABLES) >> 32) as usize
}

/// An index: four bytes and a mark for each task.
#[derive(Default)]
pub(super) struct Index {
    tables: [HashTable<u32>; TABLES as usize],
}

impl Index {
    /// The place with this word; `is` tells whether a place that may have it does.
    #[inline]
    pub fn find(&self, word: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let hash = hash(word);
        self.tables[table(hash)].find(hash, |&slot| is(slot)).copied()
    }

    /// Adds a place; `word_of` tells the words of those that are there.
    pub fn insert(&mut self, word: u64, slot: u32, word_of: impl Fn(u32) -> u64) {
        let word = hash(word);
        self.tables[table(word)].insert_unique(word, slot, |&slot| hash(word_of(slot)));
    }

    /// Removes the place with this word for which `is` holds. It must still have its word.
    pub fn remove(&mut self, word: u64, mut is: impl FnMut(u32) -> bool, word_of: impl Fn(u32) -> u64) -> Option<u32> {
        let word = hash(word);
        let table = &mut self.tables[table(word)];
        let slot = table.find_entry(word, |&slot| is(slot)).ok()?.remove().0;
        if table.capacity() > SMALL && table.len() < table.capacity() / 8 {
            table.shrink_to(table.len() * 2, |&slot| hash(word_of(slot)));
        }
        Some(slot)
    }

    /// Places that there is room for.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.tables.iter().map(HashTable::capacity).sum()
    }
}
