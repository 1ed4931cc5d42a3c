//! Tars: mutated, and the known attacks, each refused or its entries passed over, with nothing made anywhere.

use crate::harness::{Reached, Scratch, Target, refused};
use crate::make;
use crate::sources::{read, small};
use alexnet::data::source::{Format, list};
use std::path::Path;

/// A header block with its checksum made right.
fn header(name: &[u8], size: u64, kind: u8) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

/// Makes the checksum of a header block right.
fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An entry: header and padded data.
fn entry(name: &[u8], kind: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, data.len() as u64, kind);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn sample(key: &str, label: &str) -> Vec<u8> {
    let picture = entry(format!("{key}.png").as_bytes(), b'0', &small());
    [picture, entry(format!("{key}.cls").as_bytes(), b'0', label.as_bytes())].concat()
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

fn link(name: &str, kind: u8, target: &str) -> Vec<u8> {
    let mut block = header(name.as_bytes(), 0, kind);
    block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    seal(&mut block);
    block
}

/// One record of an extended header.
fn pax(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let length = (1..4).map(|digits| rest.len() + digits).find(|n| n.to_string().len() + rest.len() == *n);
    format!("{}{rest}", length.unwrap()).into_bytes()
}

const STAGES: [&str; 4] = ["no tar", "damaged", "without samples", "accepted"];

fn stage_of(error: &str) -> usize {
    match error {
        e if e.contains("not a tar") => 0,
        e if e.contains("no pictures with labels") || e.contains("label ") => 2,
        _ => 1,
    }
}

#[test]
fn mutated_tars() {
    let place = Scratch::new("x.tar");
    make::write(place.put(b"").with_file_name("classnames.txt"), "blue\ngreen\nred\n");
    let long_name = b"a/long/name.png\0";
    let with_long = [entry(b"././@LongLink", b'L', long_name), sample("short", "1"), end()].concat();
    let with_pax = [entry(b"x", b'x', &pax("path", "other.png")), sample("other", "2"), end()].concat();
    let with_link = [sample("one", "0"), link("two.png", b'2', "one.png"), end()].concat();
    // The name in the long header is that of the picture; its label has the same key.
    let with_long = {
        let mut bytes = with_long;
        let label = bytes.windows(9).position(|w| w == b"short.cls").unwrap();
        bytes[label..label + 15].copy_from_slice(b"a/long/name.cls");
        let block = label / 512 * 512;
        seal(&mut bytes[block..block + 512]);
        bytes
    };
    Target {
        name: "tar",
        seeds: vec![with_long, with_pax, with_link],
        tokens: [
            &b"ustar\0"[..],
            b"../",
            b"/",
            b"\x80\0\0\0\0\0\0\xFF",
            b"77777777777",
            b" size=9\n",
            b".cls",
        ]
        .map(<[u8]>::to_vec)
        .to_vec(),
        text: false,
        repair: &|bytes| {
            for block in bytes.chunks_exact_mut(512).filter(|b| &b[257..262] == b"ustar") {
                seal(block);
            }
        },
        stages: &STAGES,
        deep: (2, 0.4),
        parse: &|bytes| read(place.put(bytes), Format::WebDataset, &STAGES, stage_of),
    }
    .run();
}

/// What lies below a folder.
fn tree(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for found in std::fs::read_dir(folder).unwrap().flatten() {
        all.push(found.path());
        if found.file_type().unwrap().is_dir() {
            all.extend(tree(&found.path()));
        }
    }
    all.sort();
    all
}

#[test]
fn known_attacks_on_tars() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("in/here/x.tar");
    make::write(&place, "");
    let before = tree(folder.path());
    let good = [sample("good", "cat"), sample("other", "dog")].concat();
    let with = |bytes: &[u8]| [bytes, &good, &end()].concat();
    let evil = small();

    // Passed over and named: the good samples are used, and nothing else.
    let passed: [(&str, Vec<u8>, &str); 12] = [
        ("..", entry(b"../../evil.png", b'0', &evil), "a name with .."),
        (".. within", entry(b"a/../../../evil.png", b'0', &evil), "a name with .."),
        ("absolute", entry(b"/tmp/evil.png", b'0', &evil), "an absolute name"),
        (
            "symbolic link, and a file through it",
            [link("way", b'2', "/etc"), entry(b"way/passwd.png", b'0', &evil)].concat(),
            "a symbolic link",
        ),
        ("hard link", link("evil.png", b'1', "/etc/passwd"), "a hard link"),
        ("device", entry(b"evil.png", b'3', b""), "a device"),
        ("block device", entry(b"evil.png", b'4', b""), "a device"),
        ("FIFO", entry(b"evil.png", b'6', b""), "a FIFO"),
        ("zero byte", entry(b"evil.png\0/../x.png", b'0', &evil), "a zero byte"),
        (
            "zero byte in an extended header",
            [entry(b"x", b'x', &pax("path", "a\0b.png")), entry(b"a.png", b'0', &evil)].concat(),
            "a zero byte",
        ),
        (
            "long name with ..",
            [entry(b"././@LongLink", b'L', b"../../../evil.png\0"), entry(b"x.png", b'0', &evil)].concat(),
            "a name with ..",
        ),
        ("an archive in it", entry(b"good2.tar", b'0', &[good.clone(), end()].concat()), ""),
    ];
    for (name, bytes, why) in passed {
        make::write(&place, with(&bytes));
        let listing =
            list(&place, Some(Format::WebDataset), &mut |_, _| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
        let used: Vec<String> = listing.entries.iter().map(|e| e.name()).collect();
        assert_eq!(used, ["x/good.png", "x/other.png"], "{name}");
        let named = listing.skipped.iter().any(|s| s.reason.contains(why));
        assert!(named || why.is_empty(), "{name}: {:?}", listing.skipped);
        assert_eq!(tree(folder.path()), before, "{name}: something was made");
    }
    // Refused.
    let mut huge = header(b"huge.png", 0, b'0');
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
    seal(&mut huge);
    let mut negative = huge.clone();
    negative[124..136].fill(0xFF);
    seal(&mut negative);
    let lie =
        |key: &str, value: &str| [entry(b"x", b'x', &pax(key, value)), entry(b"a.png", b'0', &evil)].concat();
    let whole = with(&[]);
    let attacks: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("8 EiB", with(&huge), &["cut short", "huge.png should have 9223372036854775807 bytes"]),
        ("a negative size", with(&negative), &["no size"]),
        (
            "a size in PAX that lies",
            with(&lie("size", "18446744073709551615")),
            &["should have 18446744073709551615"],
        ),
        ("a size in PAX that is none", with(&lie("size", "-1")), &["a size that is no number"]),
        (
            "a long name of 1 GiB",
            with(&header(b"././@LongLink", 1 << 30, b'L')),
            &["should have 1073741824 bytes"],
        ),
        (
            "a long name of 5 KB",
            with(&entry(b"././@LongLink", b'L', &[b'a'; 5000])),
            &["a name of 5000 bytes"],
        ),
        (
            "a long extended header",
            with(&entry(b"x", b'x', &vec![b'1'; 70 << 10])),
            &["an extended header of"],
        ),
        (
            "a wrong checksum",
            {
                let mut w = whole.clone();
                w[1024] ^= 1;
                w
            },
            &["wrong checksum at byte 1024"],
        ),
        ("cut in a member", whole[..700].to_vec(), &["cut short"]),
        ("cut in a header", whole[..whole.len() - 1200].to_vec(), &["cut short"]),
        ("cut before the end", whole[..whole.len() - 1024].to_vec(), &["cut short", "two blocks of zeros"]),
        ("empty", vec![], &["cut short"]),
    ];
    for (name, bytes, words) in attacks {
        refused(name, &bytes, words, |bytes| {
            make::write(&place, bytes);
            read(&place, Format::WebDataset, &STAGES, stage_of)
        });
        assert_eq!(tree(folder.path()), before, "{name}: something was made");
    }
}

#[test]
fn very_many_tiny_entries_are_counted_not_kept() {
    let place = Scratch::new("x.tar");
    let many: Vec<u8> = (0..40_000).flat_map(|i| link(&format!("{i}"), b'2', "x")).chain(end()).collect();
    // Writing 20 MB is not the parser's work.
    let file = place.put(&many);
    let error = refused("40,000 links", &many, &["no pictures with labels"], |_| {
        Reached::refused(
            0,
            match list(file, Some(Format::WebDataset), &mut |_, _| {}) {
                Ok(listing) => format!("listed {}", listing.entries.len()),
                Err(e) => e.to_string(),
            },
        )
    });
    assert!(error.contains("a symbolic link"), "{error}");
}
