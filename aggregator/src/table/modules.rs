//! The loaded objects, and those that were unloaded but still have frames.
//!
//! An object that comes back as it was (same file, build-id and place) is the same one, so a program that loads and
//! unloads a plug-in all day does not grow this table.

use std::collections::{BTreeMap, HashMap};

/// Most objects kept. A program that loads more shows frames without module.
const MAX_MODULES: usize = 1 << 20;

/// A loaded object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// Path as the loader knows it; empty for the executable.
    pub path: Vec<u8>,
    /// GNU build-id, empty when it has none.
    pub build_id: Vec<u8>,
    /// First address.
    pub start: u64,
    /// End.
    pub end: u64,
    /// What to subtract from an address to get the file's own.
    pub bias: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    objects: Vec<Object>,
    index: HashMap<Object, u32>,
    /// By first address. No two overlap.
    loaded: BTreeMap<u64, u32>,
}

/// What [`Modules::load`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum Loaded {
    /// It was known to be there.
    Already,
    /// It is there now. The other objects were in its place, and must have been unloaded unseen.
    Now {
        /// Its index.
        module: u32,
        /// The others.
        displaced: Vec<u32>,
    },
    /// The table is full.
    Full,
}

impl Modules {
    /// An object was loaded.
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

    /// The object at `start` was unloaded. Returns its index.
    pub fn unload(&mut self, start: u64) -> Option<u32> {
        self.loaded.remove(&start)
    }

    /// The loaded object that a return address points into, or just behind.
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
