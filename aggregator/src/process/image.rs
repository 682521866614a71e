//! The program that runs in the target.

/// A program that runs in the target; `exec` begins another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Counted from 1; 0 before the collector was up.
    pub number: u32,
    /// Path of the executable.
    pub executable: String,
    /// Arguments, joined by spaces.
    pub command: String,
    /// Whether both were read from the running process, rather than known from how it was started.
    pub is_read: bool,
}

impl Image {
    /// The path of an object as snapshots show it: the loader has none for the executable.
    pub fn path_of(&self, loader_path: &[u8]) -> String {
        if loader_path.is_empty() {
            return self.executable.clone();
        }
        String::from_utf8_lossy(loader_path).into_owned()
    }
}
