//! Numbered things whose numbers are not mistaken for those of earlier ones.

/// Names a thing: its place, and how many things the place has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// The key and a bit as one number, for the kernel to keep. Bit 0 is the bit.
    pub fn token(self, bit: bool) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index) << 1 | u64::from(bit)
    }

    /// What [`Key::token`] was made of.
    pub fn of_token(token: u64) -> (Key, bool) {
        let index = (token & 0xffff_ffff) >> 1;
        let key = Key { index: index as u32, generation: (token >> 32) as u32 };
        (key, token & 1 == 1)
    }
}

/// Things by key.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Keeps a thing.
    pub fn insert(&mut self, thing: T) -> Key {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.places.push((0, None));
                self.places.len() as u32 - 1
            }
        };
        let place = &mut self.places[index as usize];
        place.1 = Some(thing);
        Key { index, generation: place.0 }
    }

    /// The thing, if it is still there.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.places.get_mut(key.index as usize) {
            Some((generation, thing)) if *generation == key.generation => thing.as_mut(),
            _ => None,
        }
    }

    /// [`Slab::get_mut`], to read.
    pub fn get(&self, key: Key) -> Option<&T> {
        match self.places.get(key.index as usize) {
            Some((generation, thing)) if *generation == key.generation => thing.as_ref(),
            _ => None,
        }
    }

    /// Takes the thing out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.0 != key.generation {
            return None;
        }
        let thing = place.1.take()?;
        // The highest number would be the door's.
        place.0 = (place.0 + 1) & 0x7fff_ffff;
        self.free.push(key.index);
        Some(thing)
    }

    /// All things.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().enumerate().filter_map(|(index, (generation, thing))| {
            let key = Key { index: index as u32, generation: *generation };
            thing.as_ref().map(|thing| (key, thing))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_survive_as_tokens(index in 0u32..1 << 31, generation in 0u32..1 << 31, bit: bool) {
            let key = Key { index, generation };
            prop_assert_eq!(Key::of_token(key.token(bit)), (key, bit));
        }

        #[test]
        fn an_old_key_finds_nothing(removals in proptest::collection::vec(0usize..8, 1..64)) {
            let mut slab = Slab::default();
            let mut live: Vec<(Key, usize)> = Vec::new();
            let mut old = Vec::new();
            for (number, at) in removals.into_iter().enumerate() {
                live.push((slab.insert(number), number));
                if at < live.len() {
                    let (key, value) = live.remove(at);
                    prop_assert_eq!(slab.remove(key), Some(value));
                    old.push(key);
                }
                prop_assert_eq!(slab.iter().count(), live.len());
                for (key, value) in &live {
                    prop_assert_eq!(slab.get_mut(*key), Some(&mut value.clone()));
                }
                for key in &old {
                    prop_assert_eq!(slab.get_mut(*key), None);
                    prop_assert_eq!(slab.remove(*key), None);
                }
            }
        }
    }
}
