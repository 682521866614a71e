//! Loaded objects, and unloaded objects with frames.
//!
//! An object that is loaded again with the same file, build-id and place is not added twice. So a
//! program that loads and unloads a plug-in all day does not grow the table.

use std::collections::{BTreeMap, HashMap};

/// Most objects kept. Frames of further objects have no module.
const MAX_MODULES: usize = 1 << 20;

/// A loaded object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// Path known to the loader; empty for the executable.
    pub path: Vec<u8>,
    /// GNU build-id; empty if the object has none.
    pub build_id: Vec<u8>,
    /// First address.
    pub start: u64,
    /// First address behind the object.
    pub end: u64,
    /// Difference between an address in memory and the address in the file.
    pub bias: u64,
}

/// All objects of a program, and their places.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    objects: Vec<Object>,
    index: HashMap<Object, u32>,
    /// Loaded objects by first address. No two overlap.
    loaded: BTreeMap<u64, u32>,
}

/// Result of [`Modules::load`].
#[derive(Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The object was loaded before, at this place.
    Already,
    /// The object is loaded now. Displaced objects were at the same addresses, and must have been
    /// unloaded unseen.
    Now {
        /// Index of the object.
        module: u32,
        /// Indexes of the displaced objects.
        displaced: Vec<u32>,
    },
    /// The table is full.
    Full,
}

impl Modules {
    /// Adds a loaded object.
    pub fn load(&mut self, object: Object) -> Loaded {
        let (start, end) = (object.start, object.end);
        let known = self.index.get(&object).copied();
        if known.is_some() && self.loaded.get(&start) == known.as_ref() {
            return Loaded::Already;
        }
        let module = match known {
            Some(module) => module,
            None if self.objects.len() == MAX_MODULES => return Loaded::Full,
            None => {
                let module = u32::try_from(self.objects.len()).unwrap_or(u32::MAX);
                self.objects.push(object.clone());
                self.index.insert(object, module);
                module
            }
        };
        let overlapping = self.loaded.range(..end).filter(|&(_, &other)| self.objects[other as usize].end > start);
        let starts: Vec<u64> = overlapping.map(|(&start, _)| start).collect();
        let displaced = starts.iter().filter_map(|start| self.loaded.remove(start)).collect();
        self.loaded.insert(start, module);
        Loaded::Now { module, displaced }
    }

    /// Removes the object at `start` from the loaded objects. Returns the index of the object.
    pub fn unload(&mut self, start: u64) -> Option<u32> {
        self.loaded.remove(&start)
    }

    /// Returns the loaded object for a return address. The address may be the first behind the
    /// object, because a call may be the last instruction.
    pub fn find(&self, return_address: u64) -> Option<u32> {
        let address = return_address.checked_sub(1)?;
        let (_, &module) = self.loaded.range(..=address).next_back()?;
        (address < self.objects[module as usize].end).then_some(module)
    }

    /// All objects, by index.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// Whether an object is loaded now.
    pub fn is_loaded(&self, module: u32) -> bool {
        let object = self.objects.get(module as usize);
        object.is_some_and(|object| self.loaded.get(&object.start) == Some(&module))
    }
}
