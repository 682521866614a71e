//! Chooses a tenth of the laboratory to test a commit with. A commit always gets the same tenth.

use crate::catalogue::{Kind, Subject};

/// Returns a tenth of the subjects of each kind, rounded up. Names are hashed together with the
/// commit, and the subjects with the smallest hashes are chosen.
pub fn tenth(subjects: Vec<Subject>, commit: &str) -> Vec<Subject> {
    let mut chosen = Vec::new();
    for kind in Kind::ALL {
        let mut of_kind: Vec<Subject> = subjects.iter().filter(|subject| subject.kind == kind).cloned().collect();
        of_kind.sort_by_key(|subject| hash(&[commit, &subject.id()]));
        of_kind.truncate(of_kind.len().div_ceil(10));
        of_kind.sort_by(|a, b| a.name.cmp(&b.name));
        chosen.append(&mut of_kind);
    }
    chosen
}

/// FNV-1a over the texts, mixed at the end. The hash must be equal with every version of Rust.
fn hash(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    let mut hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn catalogue() -> Vec<Subject> {
        catalogue::all(Path::new("/venv")).expect("/usr/bin can be read")
    }

    fn chosen(subjects: &[Subject], commit: &str) -> Vec<String> {
        tenth(subjects.to_vec(), commit).iter().map(Subject::id).collect()
    }

    #[test]
    fn a_commit_chooses_the_same_tenth_each_time_and_another_commit_another() {
        let all = catalogue();
        assert_eq!(chosen(&all, "4f2a"), chosen(&all, "4f2a"));
        assert_ne!(chosen(&all, "4f2a"), chosen(&all, "4f2b"));
        for kind in Kind::ALL {
            assert!(chosen(&all, "4f2a").iter().any(|id| id.starts_with(&kind.to_string())), "no {kind}");
        }
    }

    #[test]
    fn every_server_is_chosen_by_some_commit() {
        let mut servers = catalogue();
        servers.retain(|subject| subject.kind == Kind::Server);
        let seen = (0..200).flat_map(|n| chosen(&servers, &format!("commit {n}")));
        assert_eq!(seen.collect::<BTreeSet<_>>(), servers.iter().map(Subject::id).collect());
    }
}
