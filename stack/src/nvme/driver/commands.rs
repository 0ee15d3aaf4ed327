//! The commands that are out on a queue, and their identifiers.
//!
//! An identifier is the place in the table and, above it, a generation that grows each time the place is used: an entry
//! that comes twice, or late, names a generation that is over and is recognised for what it is.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Bits of an identifier that name the place.
const PLACE_BITS: u32 = 10;
/// Most commands on one queue.
pub(super) const COMMANDS_MAX: u16 = 1 << PLACE_BITS;

#[derive(Debug)]
struct Place<T> {
    generation: u16,
    command: Option<T>,
}

/// A table of the commands that are out. No allocation after it was made.
#[derive(Debug)]
pub(super) struct Commands<T> {
    places: Box<[Place<T>]>,
    free: Vec<u16>,
}

impl<T> Commands<T> {
    /// A table of `len` places, at most [`COMMANDS_MAX`].
    pub(super) fn new(len: u16) -> Self {
        assert!(len <= COMMANDS_MAX, "{len} commands on one queue");
        let places = (0..len).map(|_| Place { generation: 0, command: None }).collect();
        Self { places, free: (0..len).rev().collect() }
    }

    /// The place that the next command will have; `None` when all are taken.
    #[inline]
    pub(super) fn next_place(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Puts a command into the next place, of which there is one, and gives it its identifier.
    #[inline]
    pub(super) fn put(&mut self, command: T) -> u16 {
        let place = self.free.pop().expect("a free place");
        let slot = &mut self.places[usize::from(place)];
        slot.generation = slot.generation.wrapping_add(1 << PLACE_BITS);
        slot.command = Some(command);
        slot.generation | place
    }

    /// Takes the command of an identifier out; `None` when no such command is out.
    #[inline]
    pub(super) fn take(&mut self, id: u16) -> Option<T> {
        let place = id & (COMMANDS_MAX - 1);
        let slot = self.places.get_mut(usize::from(place)).filter(|slot| slot.generation | place == id)?;
        let command = slot.command.take()?;
        self.free.push(place);
        Some(command)
    }

    /// Takes all commands out, by ascending places.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.free.clear();
        self.free.extend((0..self.places.len() as u16).rev());
        self.places.iter_mut().filter_map(|slot| slot.command.take())
    }

    /// The commands that are out, with their identifiers.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut T)> {
        self.places.iter_mut().enumerate().filter_map(|(place, slot)| {
            let id = slot.generation | place as u16;
            slot.command.as_mut().map(|command| (id, command))
        })
    }

    /// How many are out.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_good_for_one_completion() {
        let mut commands = Commands::new(2);
        let first = commands.put('a');
        assert_eq!(commands.take(first), Some('a'));
        assert_eq!(commands.take(first), None, "it came twice");
        let second = commands.put('b');
        assert_eq!(first % COMMANDS_MAX, second % COMMANDS_MAX, "the same place");
        assert_eq!(commands.take(first), None, "it came late");
        assert_eq!(commands.take(COMMANDS_MAX - 1), None, "no such place");
        assert_eq!((commands.take(second), commands.len()), (Some('b'), 0));
    }

    #[test]
    fn all_places_are_used_and_come_back() {
        let mut commands = Commands::new(3);
        while commands.next_place().is_some() {
            commands.put(());
        }
        assert_eq!((commands.len(), commands.iter_mut().count()), (3, 3));
        assert_eq!((commands.drain().count(), commands.len()), (3, 0));
        assert_eq!(commands.next_place(), Some(0));
    }
}
