//! A server like `live.c`, in Rust: a thread for each connection, and blocks from Rust's allocator.

use std::alloc::{Layout, alloc, dealloc};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

static GENERATION: AtomicBool = AtomicBool::new(false);
static BLOCKS: AtomicI64 = AtomicI64::new(0);
static BYTES: AtomicI64 = AtomicI64::new(0);

type Block = Option<(*mut u8, Layout)>;

fn count(size: usize, sign: i64) {
    if size % 2 == 1 {
        BLOCKS.fetch_add(sign, SeqCst);
        BYTES.fetch_add(sign * size as i64, SeqCst);
    }
}

fn free(block: Block) {
    if let Some((block, layout)) = block {
        count(layout.size(), -1);
        // SAFETY: it came from `alloc` with this layout.
        unsafe { dealloc(block, layout) };
    }
}

fn work(blocks: &mut [Block], seed: &mut u32) {
    for _ in 0..60 {
        *seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        let at = *seed as usize >> 16 & (blocks.len() - 1);
        free(blocks[at].take());
        let size = 32 * (1 + (*seed as usize >> 8) % 60) + usize::from(GENERATION.load(SeqCst));
        let layout = Layout::from_size_align(size, 1).expect("sound");
        // SAFETY: the size is not 0.
        let block = unsafe { alloc(layout) };
        count(size, 1);
        blocks[at] = Some((block, layout));
    }
}

fn serve(stream: TcpStream, mut seed: u32) -> std::io::Result<()> {
    let mut blocks: Vec<Block> = vec![None; 512];
    let mut out = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        match line?.as_str() {
            "work" => work(&mut blocks, &mut seed),
            "generation" => GENERATION.store(true, SeqCst),
            _ => {
                writeln!(out, "{} {}", BLOCKS.load(SeqCst), BYTES.load(SeqCst))?;
                continue;
            }
        }
        out.write_all(b"ok\n")?;
    }
    blocks.into_iter().for_each(free);
    Ok(())
}

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("port {}", listener.local_addr()?.port());
    for (seed, stream) in (1..).zip(listener.incoming()) {
        let stream = stream?;
        stream.set_nodelay(true)?;
        std::thread::spawn(move || serve(stream, seed));
    }
    Ok(())
}
