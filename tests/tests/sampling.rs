//! Estimates from samples, compared with the truth over many seeds. The test uses the collector's
//! sampler on a stream of blocks, and the sums of `report`.

use heapline_collector::sampling::sampler::Sampler;
use heapline_shared_format::snapshot::Sampled;
use heapline_tools::query::estimate::Estimate;

const SEEDS: u64 = 200;

/// A block of the stream. Some blocks live to the end of the stream.
#[derive(Clone, Copy)]
struct Block {
    size: u64,
    lives: bool,
}

/// Random sizes between two bounds, about `bytes` in total. Each power of two is equally frequent.
fn stream(from: u64, to: u64, bytes: u64) -> Vec<Block> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let (mut blocks, mut left) = (Vec::new(), bytes);
    while left > 0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between the bounds")]
        let size = (from as f64 * (to as f64 / from as f64).powf(random())) as u64;
        left = left.saturating_sub(size);
        blocks.push(Block { size, lives: random() < 0.3 });
    }
    blocks
}

/// True number of bytes and blocks.
fn truth(blocks: &[Block]) -> (f64, f64) {
    (blocks.iter().map(|block| block.size).sum::<u64>() as f64, blocks.len() as f64)
}

/// Estimates of bytes and blocks from the samples of a seed, each with whether the interval
/// contains the truth.
fn estimate(blocks: &[Block], seed: u64, intervals: [u64; 2], keep: impl Fn(&Block) -> bool) -> [(f64, bool); 2] {
    let kept: Vec<Block> = blocks.iter().copied().filter(|block| keep(block)).collect();
    let (true_bytes, true_blocks) = truth(&kept);
    let mut sampler = Sampler::begin(seed, intervals[0]);
    let (mut bytes, mut sum) = (0_u64, Estimate::default());
    for (i, block) in blocks.iter().enumerate() {
        if !sampler.passes(usize::try_from(block.size).expect("64 bits")) {
            continue;
        }
        if keep(block) {
            let sampled = Sampled { stack: 0, interval: sampler.interval(), size: block.size };
            sum.add(&Estimate::of(1, Some(sampled), 1));
            bytes += heapline_shared_format::snapshot::weight::bytes(block.size, sampler.interval());
        }
        // The distance changes in mid-run. A thread adopts the new distance with the next sample.
        sampler.draw(intervals[usize::from(i > blocks.len() / 2)]);
    }
    let holds = |interval: Option<(u64, u64)>, truth: f64| {
        interval.is_some_and(|(from, to)| from as f64 <= truth && truth <= to as f64)
    };
    [
        (bytes as f64, holds(sum.size_interval(bytes), true_bytes)),
        (sum.blocks, holds(sum.count_interval(), true_blocks)),
    ]
}

#[test]
fn estimates_are_right_on_average_and_intervals_hold_the_truth() {
    let (mut tried, mut held) = (0_u32, 0_u32);
    for interval in [64 << 10, 512 << 10, 4 << 20_u64] {
        // Sizes as at a line of a program. Block counts are unreliable when sizes vary widely: a
        // small block is hardly ever sampled, and a sampled one stands for thousands.
        let small = stream(interval / 64, interval / 16, 150 * interval);
        // Larger distances would need millions of tiny blocks and show nothing new.
        let tiny = stream(16, 24, 60 * interval.min(64 << 10));
        let large = stream(interval / 2, 4 * interval, 150 * interval);
        for (blocks, kind) in [(&tiny, "tiny"), (&small, "small"), (&large, "large")] {
            if kind == "tiny" && interval != 64 << 10 {
                continue;
            }
            for (name, keep) in [("all", (|_| true) as fn(&Block) -> bool), ("live", |block| block.lives)] {
                let intervals = [interval, 3 * interval];
                let runs: Vec<_> = (0..SEEDS).map(|seed| estimate(blocks, seed, intervals, keep)).collect();
                let kept: Vec<Block> = blocks.iter().copied().filter(keep).collect();
                let (bytes, count) = truth(&kept);
                for (what, index, truth) in [("bytes", 0, bytes), ("blocks", 1, count)] {
                    let n = SEEDS as f64;
                    let mean = runs.iter().map(|run| run[index].0).sum::<f64>() / n;
                    let variance = runs.iter().map(|run| (run[index].0 - mean).powi(2)).sum::<f64>() / (n - 1.0);
                    let z = (mean - truth) / (variance / n).sqrt();
                    let holds = runs.iter().filter(|run| run[index].1).count();
                    println!("{interval} {kind} {name} {what}: z {z:+.2}, {holds} of {SEEDS} intervals hold the truth");
                    // The chance that any of the 28 figures is this far off is about 1 in 100.
                    assert!(z.abs() < 3.5, "{interval} {kind} {name} {what}: mean {mean}, truth {truth}, z {z}");
                    assert!((180..=200).contains(&holds), "{interval} {kind} {name} {what}: {holds} of {SEEDS}");
                    tried += u32::try_from(SEEDS).expect("few");
                    held += u32::try_from(holds).expect("few");
                }
            }
        }
    }
    let share = f64::from(held) / f64::from(tried);
    println!("{held} of {tried} intervals hold the truth");
    assert!((0.92..=0.98).contains(&share), "{share}");
}
