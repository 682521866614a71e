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
    /// Identity of the executable's file: device and inode. None where a loader was started with
    /// the program.
    pub file: Option<(u64, u64)>,
    /// Whether both were read from the running process, rather than known from how it was started.
    pub is_read: bool,
}

impl Image {
    /// Whether both images are of one program. A file that runs may be renamed meanwhile.
    pub fn is_program_of(&self, other: &Image) -> bool {
        self.executable == other.executable || self.file.is_some() && self.file == other.file
    }

    /// The path of an object as snapshots show it: the loader has none for the executable.
    pub fn path_of(&self, loader_path: &[u8]) -> String {
        if loader_path.is_empty() {
            return self.executable.clone();
        }
        String::from_utf8_lossy(loader_path).into_owned()
    }
}
