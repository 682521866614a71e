//! Checks the sizes that compressed sections of an ELF file claim to expand to.
//!
//! symbolic allocates the claimed size before reading the section. A too large request ends the
//! process without a panic, so this module finds incredible sizes first.

/// Greatest credible ratio of expanded to compressed bytes, far above the ratio of real debug
/// information.
const MAX_RATIO: u64 = 200;
/// Bytes that every section may expand to.
const FREE_BYTES: u64 = 1 << 20;
/// Greatest credible size of an expanded section, above the size of any real section.
const MAX_BYTES: u64 = 8 << 30;

const SECTION_BYTES: usize = 64;
const SHF_COMPRESSED: u64 = 0x800;

/// Whether all sections of a 64-bit little-endian ELF file expand to credible sizes. False for
/// other files: no module is such a file.
pub(crate) fn is_credible(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF\x02\x01")
        && Sections::of(file).is_none_or(|sections| sections.all().all(|section| sections.is_credible(section)))
}

struct Sections<'f> {
    file: &'f [u8],
    table: &'f [u8],
    /// Content of the section with the names of sections.
    names: &'f [u8],
}

impl<'f> Sections<'f> {
    fn of(file: &'f [u8]) -> Option<Sections<'f>> {
        const IN_THE_FIRST: u16 = 0xffff;
        let table = file.get(usize::try_from(word(file, 40)?).ok()?..)?;
        // If the file's head has no room for the numbers, the first section has them.
        let count = match half(file, 60)? {
            0 => word(table, 32)?,
            count => count.into(),
        };
        let names = match half(file, 62)? {
            IN_THE_FIRST => u64::from(half(table, 40)?) | u64::from(half(table, 42)?) << 16,
            names => names.into(),
        };
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(SECTION_BYTES));
        let table = bytes.and_then(|bytes| table.get(..bytes)).unwrap_or(table);
        let mut sections = Sections { file, table, names: &[] };
        let names = usize::try_from(names).ok().and_then(|at| sections.all().nth(at));
        sections.names = names.map(|section| sections.content(section)).unwrap_or_default();
        Some(sections)
    }

    fn all(&self) -> impl Iterator<Item = &'f [u8]> + use<'f> {
        self.table.chunks_exact(SECTION_BYTES)
    }

    /// Returns the content of a section. Content beyond the end of the file is left out: the reader
    /// of the section refuses it.
    fn content(&self, section: &[u8]) -> &'f [u8] {
        let place = |at: usize| word(section, at).and_then(|value| usize::try_from(value).ok());
        let content = place(24).and_then(|start| self.file.get(start..)).unwrap_or_default();
        content.get(..place(32).unwrap_or(usize::MAX)).unwrap_or(content)
    }

    fn is_credible(&self, section: &[u8]) -> bool {
        let name = usize::try_from(word(section, 0).unwrap_or_default() & 0xffff_ffff).unwrap_or(usize::MAX);
        let is_named = self.names.get(name..).is_some_and(|name| name.starts_with(b".z"));
        if !is_named && word(section, 8).unwrap_or_default() & SHF_COMPRESSED == 0 {
            return true;
        }
        let content = self.content(section);
        let claimed = match content.strip_prefix(b"ZLIB") {
            Some(rest) => word(rest, 0).map(u64::swap_bytes),
            None => word(content, 8),
        };
        let limit = (content.len() as u64).saturating_mul(MAX_RATIO).saturating_add(FREE_BYTES).min(MAX_BYTES);
        claimed.is_none_or(|claimed| claimed <= limit)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|half| u16::from_le_bytes(*half))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[u8] = b"\0.zdebug_info\0.debug_info\0";

    /// Makes an ELF file of three sections: an empty section, the names, and a section with this
    /// name, flag and content.
    fn file(name: u32, flags: u64, content: &[u8]) -> Vec<u8> {
        let mut file = vec![0_u8; 64 + 3 * SECTION_BYTES];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[40..48].copy_from_slice(&64_u64.to_le_bytes());
        (file[60], file[62]) = (3, 1);
        for (index, content) in [(1, NAMES), (2, content)] {
            let (at, end) = (64 + index * SECTION_BYTES, file.len() as u64);
            file[at + 24..at + 32].copy_from_slice(&end.to_le_bytes());
            file[at + 32..at + 40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            file.extend(content);
        }
        let at = 64 + 2 * SECTION_BYTES;
        file[at..at + 4].copy_from_slice(&name.to_le_bytes());
        file[at + 8..at + 16].copy_from_slice(&flags.to_le_bytes());
        file
    }

    fn compressed(kind: u64, size: u64) -> Vec<u8> {
        [kind.to_le_bytes(), size.to_le_bytes(), 1_u64.to_le_bytes(), [7; 8]].concat()
    }

    #[test]
    fn sizes_that_no_section_has_are_found_wherever_they_stand() {
        let gnu = |size: u64| [&b"ZLIB"[..], &size.to_be_bytes(), &[7; 20]].concat();
        for (content, is_sound) in [
            (gnu(5000), true),
            (gnu(1 << 60), false),
            (compressed(1, 5000), true),
            (compressed(1, 1 << 60), false),
            (compressed(2, 1 << 60), false),
            (compressed(2, FREE_BYTES + 32 * MAX_RATIO), true),
            (compressed(2, FREE_BYTES + 32 * MAX_RATIO + 1), false),
            (b"short".to_vec(), true),
        ] {
            assert_eq!(is_credible(&file(14, SHF_COMPRESSED, &content)), is_sound, "{content:?}");
            assert_eq!(is_credible(&file(1, 0, &content)), is_sound, "{content:?} by its name");
            assert!(is_credible(&file(14, 0, &content)), "{content:?} is not compressed");
        }
        let mut extended = file(1, 0, &compressed(1, 1 << 60));
        extended[60..64].copy_from_slice(&[0, 0, 0xff, 0xff]);
        extended[64 + 32] = 3;
        extended[64 + 40] = 1;
        assert!(!is_credible(&extended), "both numbers stand in the first section");
    }

    #[test]
    fn real_programs_are_credible_and_other_files_are_not() {
        assert!(is_credible(&std::fs::read("/proc/self/exe").unwrap()));
        assert!(!is_credible(b""));
        assert!(!is_credible(b"\x7fELF\x01\x01"));
    }
}
