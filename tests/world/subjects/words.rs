use std::collections::BTreeMap;

fn main() {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for word in "the cat and the dog and the bird".split(' ') {
        *count.entry(word.to_uppercase()).or_default() += 1;
    }
    let threads: Vec<_> = (0..4_u64).map(|n| std::thread::spawn(move || (0..n).map(|x| vec![x; 9].len()).sum::<usize>())).collect();
    let sums: Vec<usize> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    println!("{count:?} {sums:?}");
}
