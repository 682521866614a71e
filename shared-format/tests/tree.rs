//! Reports of processes of a tree: a written message can be read, and any other message is refused.

use heapline_shared_format::arena::VERSION;
use heapline_shared_format::tree::{
    Address, Birth, HELLO_BYTES, Hello, HelloError, MAX_ARGUMENT_BYTES, MAX_EXECUTABLE_BYTES, WAY_BYTES, Way,
};
use proptest::prelude::*;

fn text(way: &Way) -> Vec<u8> {
    let mut text = [0; WAY_BYTES];
    let n = way.write(&mut text);
    text[..n].to_vec()
}

fn message(hello: &Hello<'_>) -> Vec<u8> {
    [&hello.head()[..], hello.executable, hello.arguments].concat()
}

#[test]
fn the_socket_is_called_after_the_random_name() {
    let address = Address { name: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210], token: [0; 2] };
    assert_eq!(&address.socket_name(), b"heapline-0123456789abcdeffedcba9876543210");
}

#[test]
fn a_way_is_readable_text() {
    let address = Address { name: [0, u64::MAX], token: [0x10, 2] };
    let way = Way { address, parent: 0xabc, fork: 7, segments: 8192, nframe: 64, clock: 1, sample: 1 << 40 };
    assert_eq!(text(&way), b"0:ffffffffffffffff:10:2:abc:7:2000:40:1:10000000000");
    for wrong in [
        &b""[..],
        b"0:1:2:3:4:5:6:7:8",
        b"0:1:2:3:4:5:6:7:8:9:a",
        b"0:1:2:3:4:5:6:7:8:",
        b"0:1:2:3:4:5:6:7:100000000:9",
        b"0:1:2:3:4:5:6:7:8:A",
        b"0:1:2:3:4:5:6:7:8:+1",
        b"00000000000000000:1:2:3:4:5:6:7:8:9",
    ] {
        assert_eq!(Way::parse(wrong), None, "{}", wrong.escape_ascii());
    }
}

#[test]
fn messages_of_others_are_told_apart() {
    let hello = Hello {
        token: [1, 2],
        key: 3,
        parent: 4,
        fork: 5,
        birth: Birth::Fork,
        pid: 6,
        executable: b"/bin/true",
        arguments: b"true\0",
    };
    let good = message(&hello);
    assert_eq!(Hello::parse(&good), Ok(hello));
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let other = u8::try_from(VERSION + 1).expect("small");
    assert_eq!(Hello::parse(&with(12, other)), Err(HelloError::Version { found: VERSION + 1 }));
    assert_eq!(Hello::parse(&with(0, 0)), Err(HelloError::Foreign));
    assert_eq!(Hello::parse(&with(8, 3)), Err(HelloError::Malformed), "an unknown birth");
    assert_eq!(Hello::parse(&with(HELLO_BYTES - 8, 0)), Err(HelloError::Malformed), "other lengths");
    for cut in 0..good.len() {
        assert!(Hello::parse(&good[..cut]).is_err(), "{cut} bytes");
    }
}

proptest! {
    #[test]
    fn any_way_survives(numbers in any::<([u64; 2], [u64; 2], u64, u64, u32, u32, u32)>()) {
        let (name, token, parent, fork, segments, nframe, clock) = numbers;
        let way = Way { address: Address { name, token }, parent, fork, segments, nframe, clock, sample: fork ^ parent };
        prop_assert_eq!(Way::parse(&text(&way)), Some(way));
    }

    #[test]
    fn any_message_survives(
        numbers in any::<([u64; 2], u64, u64, u64, bool, u32)>(),
        executable in prop::collection::vec(any::<u8>(), 0..MAX_EXECUTABLE_BYTES),
        arguments in prop::collection::vec(any::<u8>(), 0..MAX_ARGUMENT_BYTES),
    ) {
        let (token, key, parent, fork, is_fork, pid) = numbers;
        let birth = if is_fork { Birth::Fork } else { Birth::Exec };
        let hello = Hello { token, key, parent, fork, birth, pid, executable: &executable, arguments: &arguments };
        let bytes = message(&hello);
        prop_assert_eq!(Hello::parse(&bytes), Ok(hello));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = (Hello::parse(&bytes), Way::parse(&bytes));
    }
}
