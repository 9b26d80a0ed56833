//! The simulator's own random numbers: xoshiro256** (Blackman and Vigna), seeded through splitmix64. Ours, so that a
//! seed means the same on every machine and with every version of every crate.

/// A deterministic stream of numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Rng {
        let mut mix = seed;
        let state = std::array::from_fn(|_| splitmix(&mut mix));
        Rng { state }
    }

    /// A stream of its own, so that what draws from it does not shift the draws of this one.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next())
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        let [_, b, ..] = self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = b << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= t;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// 128 random bits, for ids.
    pub fn next_u128(&mut self) -> u128 {
        (u128::from(self.next()) << 64) | u128::from(self.next())
    }

    /// A number in `0 .. n`; 0 for `n` = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// A number in `from ..= to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// True so many times in a thousand.
    pub fn per_mille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }

    /// True so many times in a million.
    pub fn ppm(&mut self, n: u64) -> bool {
        n > 0 && self.below(1_000_000) < n
    }

    /// A fair coin.
    pub fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// One of these.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A waiting time around `mean` with a long tail: half of them below it, some many times longer.
    pub fn around(&mut self, mean: u64) -> u64 {
        let stretch = self.next().trailing_zeros().min(5);
        self.between(mean / 4, mean) << stretch >> 1
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_means_the_same() {
        // Worked out from the published algorithm's first outputs for this state; a change of it would silently
        // change the meaning of every seed that is written down somewhere.
        let mut rng = Rng { state: [1, 2, 3, 4] };
        assert_eq!([rng.next(), rng.next(), rng.next()], [11520, 0, 1509978240]);
        assert_eq!(Rng::new(7).next(), Rng::new(7).next());
        assert_ne!(Rng::new(7).next(), Rng::new(8).next());
    }

    #[test]
    fn ranges_are_kept() {
        let mut rng = Rng::new(1);
        let drawn: Vec<u64> = (0..1000).map(|_| rng.between(3, 5)).collect();
        assert!([3, 4, 5].iter().all(|n| drawn.contains(n)));
        assert!(drawn.iter().all(|n| (3..=5).contains(n)));
        assert_eq!(rng.below(0), 0);
    }
}
