//! One worker's decoding against the zstd library's, on frames of a packed checkpoint.
//!
//! `FrameDecoder` is what the decode stage runs. It is compared with the library decoding the same
//! frames in one call each, into scratch memory that was touched before, with a plain undoing of
//! the planes behind it. One thread, frame after frame, each into a place of its own; the sides
//! take turns and who begins changes. What counts is the thread's CPU time: a worker's speed is
//! that of a core that it has for itself. Every byte of both is compared with what was packed,
//! once.

use forebay_codec::coding::{Coding, Frame, Width};
use forebay_codec::decode::FrameDecoder;
use forebay_testkit::Content;
use zstd_safe::DCtx;

use super::PackedOptions;
use super::ground::{Ground, PACKED};
use crate::Outcome;
use crate::cpu::own_time;
use crate::measure::Spread;
use crate::origin::{gib, progress, ratio, row};
use crate::proof::differ;
use crate::report::{Bound, Figure, Limit, Row};

/// Of the library's rate, at least.
const RATE_MIN: f64 = 0.9;
/// Plain bytes that are decoded in a round, at most.
const BYTES_MAX: u64 = 256 << 20;

/// One packed object and room for what it decodes to.
struct Subject {
    name: String,
    content: Content,
    coding: Coding,
    stored: Vec<u8>,
    /// As many of its frames as count.
    frames: usize,
    plain: Vec<u8>,
    scratch: Vec<u8>,
}

pub(super) fn run(options: &PackedOptions, ground: &Ground) -> Outcome<Row> {
    let mut subject = Subject::largest(ground)?;
    let mut decoder = FrameDecoder::new()?;
    let mut library = DCtx::try_create().ok_or("no memory for a decoder")?;
    let (mut own, mut other, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    // The first round is not counted: it proves the bytes.
    for round in 0..=options.runs {
        let mut times = [0.0; 2];
        for side in [round % 2, (round + 1) % 2] {
            if round == 0 {
                subject.plain.fill(0);
            }
            times[side] = match side {
                0 => subject.own(&mut decoder)?,
                _ => subject.library(&mut library, true)?,
            };
            if round == 0 {
                differ(&subject.name, &subject.content, 0, &subject.plain)?;
            }
        }
        let without = subject.library(&mut library, false)?;
        if round > 0 {
            own.push(times[0]);
            other.push(times[1]);
            bare.push(without);
            progress(format_args!(
                "decode {round}: forebay {:.2} GB/s, library {:.2} GB/s",
                times[0], times[1]
            ));
        }
    }
    let what = format!(
        "decoding {} frames of {:.2} GiB of packed bf16 weights with one worker, against the zstd \
         library and a plain undoing of the planes",
        subject.frames,
        gib(subject.plain.len() as u64)
    );
    let (own, other): (Spread, Spread) = (own.into_iter().collect(), other.into_iter().collect());
    let mut row = row("decode", what);
    row.bounds =
        vec![Bound::new("GB/s, of the library's", ratio(&own, &other), Limit::AtLeast(RATE_MIN))];
    row.figures = vec![
        Figure::new("forebay", "GB/s", own),
        Figure::new("library", "GB/s", other),
        Figure::new("library, planes left", "GB/s", bare.into_iter().collect()),
    ];
    Ok(row)
}

impl Subject {
    /// The largest packed object that has planes.
    fn largest(ground: &Ground) -> Outcome<Self> {
        let manifest = ground.manifest(PACKED)?;
        let planed = manifest.objects.iter().filter(|object| !object.planes.is_empty());
        let object = planed.max_by_key(|object| object.bytes).ok_or("nothing is in planes")?;
        let coding = manifest.coding(object)?;
        let stored = ground.object(&format!("{PACKED}{}", object.stored_name))?;
        let content = ground.made().file(&object.name).ok_or("an object of no file")?.clone();
        let within = |frame: &&Frame| frame.plain_range().end <= BYTES_MAX;
        let counted = coding.frames().iter().take_while(within);
        let frames = counted.clone().count();
        let plain = counted.last().map_or(0, |frame| frame.plain_range().end);
        Ok(Self {
            name: object.name.clone(),
            content,
            stored: stored.to_bytes().to_vec(),
            frames,
            plain: vec![0; usize::try_from(plain)?],
            scratch: vec![1; usize::try_from(manifest.frame_bytes)?],
            coding,
        })
    }

    /// GB/s of the decode stage's decoder.
    fn own(&mut self, decoder: &mut FrameDecoder) -> Outcome<f64> {
        let begun = own_time();
        for number in 0..self.frames {
            let (frame, stored) = part(&self.coding, number, &self.stored)?;
            let into = place(frame, &mut self.plain)?;
            decoder.decode(&self.coding, number, stored, into)?;
        }
        Ok(self.rate(begun))
    }

    /// The same of the library.
    fn library(&mut self, library: &mut DCtx<'static>, undo: bool) -> Outcome<f64> {
        let begun = own_time();
        for number in 0..self.frames {
            let (frame, stored) = part(&self.coding, number, &self.stored)?;
            let into = place(frame, &mut self.plain)?;
            let scratch = self.scratch.get_mut(..into.len()).ok_or("a frame that is too long")?;
            let decoded = library.decompress(scratch, stored);
            if decoded.map_err(zstd_safe::get_error_name)? != into.len() {
                return Err("the library decodes to another size".into());
            }
            if undo {
                undo_planes(&self.coding, frame.plain_offset, scratch, into)?;
            }
        }
        Ok(self.rate(begun))
    }

    #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
    fn rate(&self, begun: std::time::Duration) -> f64 {
        self.plain.len() as f64 / 1e9 / own_time().saturating_sub(begun).as_secs_f64()
    }
}

/// A frame and what is stored of it.
fn part<'a>(coding: &'a Coding, number: usize, stored: &'a [u8]) -> Outcome<(&'a Frame, &'a [u8])> {
    let frame = coding.frames().get(number).ok_or("no such frame")?;
    let range = frame.stored_range();
    let range = usize::try_from(range.start)?..usize::try_from(range.end)?;
    Ok((frame, stored.get(range).ok_or("a frame that is not stored")?))
}

fn place<'a>(frame: &Frame, plain: &'a mut [u8]) -> Outcome<&'a mut [u8]> {
    let range = frame.plain_range();
    let range = usize::try_from(range.start)?..usize::try_from(range.end)?;
    Ok(plain.get_mut(range).ok_or("a frame beyond the object")?)
}

/// The planes of a frame undone as anyone would, tile by tile.
fn undo_planes(coding: &Coding, frame_offset: u64, from: &[u8], into: &mut [u8]) -> Outcome<()> {
    let tile_bytes = usize::try_from(coding.tile())?;
    let mut offset = frame_offset;
    for (from, into) in from.chunks(tile_bytes).zip(into.chunks_mut(tile_bytes)) {
        let end = offset + from.len() as u64;
        let mut at = 0;
        for run in coding.planes().iter().filter(|run| run.end() > offset && run.offset < end) {
            if run.width != Width::Two {
                return Err("a bf16 checkpoint has elements of two bytes".into());
            }
            let skipped = offset.saturating_sub(run.offset).next_multiple_of(2);
            let first = usize::try_from(run.offset + skipped - offset)?;
            let last = usize::try_from(run.end().min(end) - offset)?;
            let whole = first + (last - first) / 2 * 2;
            into[at..first].copy_from_slice(&from[at..first]);
            straightforward(&from[first..whole], &mut into[first..whole]);
            at = whole;
        }
        into[at..].copy_from_slice(&from[at..]);
        offset = end;
    }
    Ok(())
}

fn straightforward(from: &[u8], into: &mut [u8]) {
    let (high, low) = from.split_at(from.len() / 2);
    for (index, element) in into.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let bits = u16::from_le_bytes([low[index], high[index]]);
        *element = bits.rotate_right(1).to_le_bytes();
    }
}
