//! Changes inputs at random.

use understudy::sim::rng::Rng;

/// Numbers at which code turns.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    511,
    512,
    4095,
    4096,
    65536,
    1 << 20,
    (1 << 31) - 1,
    u32::MAX as u64,
    (1 << 62) + 1,
    u64::MAX - 4095,
    u64::MAX,
];

pub struct Mutator {
    rng: Rng,
    words: &'static [&'static [u8]],
}

impl Mutator {
    pub fn new(seed: u64, words: &'static [&'static [u8]]) -> Mutator {
        Mutator { rng: Rng::new(seed), words }
    }

    /// Whether the next input gets right checksums.
    pub fn repairs(&mut self) -> bool {
        self.rng.per_mille(900)
    }

    /// One of the pool with some changes.
    pub fn change(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = pool[self.rng.below(pool.len() as u64) as usize].clone();
        for _ in 0..self.rng.pick(&[1, 1, 1, 2, 3, 8]) {
            let other = &pool[self.rng.below(pool.len() as u64) as usize];
            self.once(&mut input, other);
        }
        input
    }

    fn once(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let length = input.len() as u64;
        // Most fields stand at the beginning.
        let reach = if self.rng.coin() { length.min(256) } else { length };
        let at = self.rng.below(reach + 1) as usize;
        match self.rng.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.rng.below(8),
            1 if at < input.len() => input[at] = self.rng.next() as u8,
            2 => self.number(input, at),
            3 => input.truncate(at),
            4 => {
                let end = (at as u64 + self.rng.below(64)).min(length) as usize;
                input.drain(at..end);
            }
            5 => {
                let bytes: Vec<u8> = (0..self.rng.below(16)).map(|_| self.rng.next() as u8).collect();
                input.splice(at..at, bytes);
            }
            6 => {
                let from = self.rng.below(other.len() as u64 + 1) as usize;
                let end = (from as u64 + self.rng.pick(&[8, 64, 4096])).min(other.len() as u64) as usize;
                let behind = if self.rng.coin() { at } else { (at + end - from).min(input.len()) };
                input.splice(at..behind, other[from..end].iter().copied());
            }
            7 if !self.words.is_empty() => {
                let word = self.rng.pick(self.words);
                let behind = if self.rng.coin() { at } else { (at + word.len()).min(input.len()) };
                input.splice(at..behind, word.iter().copied());
            }
            _ => {
                let end = (at + 8).min(input.len());
                input[at..end].fill(self.rng.pick(&[0, 0xff]));
            }
        }
    }

    /// A number at which code turns, or one beside what stands there, in either order of bytes.
    fn number(&mut self, input: &mut [u8], at: usize) {
        let width = self.rng.pick(&[1, 2, 4, 8]);
        let Some(place) = input.get_mut(at..at + width) else { return };
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(place);
        let little = u64::from_le_bytes(bytes);
        let number = match self.rng.below(4) {
            0 => little.wrapping_add(1),
            1 => little.wrapping_sub(1),
            _ => self.rng.pick(&NUMBERS),
        };
        let changed = number.to_le_bytes();
        place.copy_from_slice(&changed[..width]);
        if self.rng.per_mille(300) {
            place.reverse();
        }
    }
}
