//! Plans, carried out byte by byte on what stands for slots and memories.

use forebay_device::{Device, FakeDevice};
use forebay_proto::pb;

use super::*;

/// Bytes of an element of every tensor here.
const ELEMENT: u64 = 2;

/// Objects of 120, 30 and 0 bytes. The first has tensors with gaps before, between and behind, one
/// without bytes among them, and not in the order in which they lie.
fn manifest() -> Manifest {
    let object = |key: &str, bytes| pb::Object { key: key.to_owned(), bytes, ..Default::default() };
    let tensor = |name: &str, shape: &[u64], offset| pb::Tensor {
        name: name.to_owned(),
        dtype: "F16".to_owned(),
        shape: shape.to_vec(),
        object_index: 0,
        offset,
        bytes: ELEMENT * shape.iter().product::<u64>(),
    };
    let objects = vec![object("model", 120), object("notes", 30), object("empty", 0)];
    let tensors = vec![
        tensor("wide", &[3, 7], 64),
        tensor("none", &[0, 4], 60),
        tensor("cube", &[2, 3, 4], 8),
        tensor("bias", &[5], 110),
    ];
    let mut builder = Manifest::builder(objects.len() as u64, tensors.len() as u64);
    builder.push(pb::ManifestPage { objects, tensors, last: true }).unwrap();
    builder.finish().unwrap()
}

/// What stands at a place of an object: no two places of a test are alike.
fn byte(object: ObjectIndex, at: u64) -> u16 {
    u16::try_from(object.0 as u64 * 1000 + at).unwrap()
}

/// The slice of a tensor, element by element.
fn sliced(tensor: &TensorEntry, cut: Option<(usize, u64, u64)>) -> Vec<u16> {
    let elements = tensor.shape.iter().product::<u64>();
    let wanted = |element: &u64| {
        let Some((dim, rank, ranks)) = cut else { return true };
        let Some(&size) = tensor.shape.get(dim) else { return true };
        let inner: u64 = tensor.shape[dim + 1..].iter().product();
        let index = element / inner % size;
        (size * rank / ranks..size * (rank + 1) / ranks).contains(&index)
    };
    let bytes = |element| {
        let start = tensor.range.start + element * ELEMENT;
        (start..start + ELEMENT).map(|at| byte(tensor.object, at))
    };
    (0..elements).filter(wanted).flat_map(bytes).collect()
}

/// Carries a plan out, with objects cut into chunks of so many bytes; the memories, and how many
/// bytes every item was credited with.
fn carry_out(plan: &Plan, manifest: &Manifest, chunk: u64) -> (Vec<Vec<Option<u16>>>, Vec<u64>) {
    let size = |memory: &Memory| match memory {
        Memory::Allocate(bytes) => *bytes,
        Memory::Given(memory) => memory.bytes(),
    };
    let mut memories: Vec<Vec<Option<u16>>> =
        plan.memories.iter().map(|memory| vec![None; usize_of(size(memory))]).collect();
    let mut credits = vec![0; plan.items.len()];
    let mut copy = |extent: &Extent, copy: PlannedCopy| {
        let PlannedCopy { rows, memory, .. } = copy;
        for (row, at) in (0..rows.rows).flat_map(|row| (0..rows.row_bytes).map(move |at| (row, at)))
        {
            let from = rows.source_start + row * rows.source_pitch + at;
            assert!(extent.slot_range.contains(&from), "{copy:?} of {extent:?}");
            let from = extent.object_range.start + (from - extent.slot_range.start) as u64;
            let to = usize_of(rows.destination_start) + row * rows.destination_pitch + at;
            let before = memories[memory][to].replace(byte(extent.object, from));
            assert_eq!(before, None, "copied twice by {copy:?} of {extent:?}");
        }
        let brought: u64 = copy.credits.iter().map(|(_, bytes)| bytes).sum();
        assert!(brought <= rows.bytes(), "{copy:?}");
        copy.credits.into_iter().for_each(|(item, bytes)| credits[item] += bytes);
    };
    for (index, object) in manifest.objects().iter().enumerate() {
        for start in (0..object.bytes).step_by(usize_of(chunk)) {
            let object_range = start..object.bytes.min(start + chunk);
            let bytes = usize_of(object_range.end - object_range.start);
            // Somewhere in a slot.
            let extent =
                Extent { object: ObjectIndex(index), object_range, slot_range: 5..5 + bytes };
            plan.copies(&extent).into_iter().for_each(|planned| copy(&extent, planned));
        }
    }
    (memories, credits)
}

/// Chunks that cut through elements, rows and tensors, and one that holds everything.
const CHUNKS: [u64; 7] = [1, 3, 7, 16, 50, 64, 500];

/// Carries a plan out and compares every item; the number of bytes that were copied.
fn check(plan: &Plan, manifest: &Manifest, cut: Option<(usize, u64, u64)>) -> Vec<usize> {
    let wanted = |item: &Item| {
        let tensor = manifest.tensors().iter().find(|tensor| tensor.name == item.name);
        let object = manifest.objects().iter().position(|object| object.key == item.name);
        match (tensor, object) {
            (Some(tensor), _) => sliced(tensor, cut),
            (None, object) => {
                let object = ObjectIndex(object.unwrap());
                (0..item.bytes).map(|at| byte(object, at)).collect()
            }
        }
    };
    let copied = |chunk| {
        let (memories, credits) = carry_out(plan, manifest, chunk);
        for (item, credit) in plan.items.iter().zip(credits) {
            let start = usize_of(item.offset);
            let there = &memories[item.memory][start..start + usize_of(item.bytes)];
            let there: Option<Vec<u16>> = there.iter().copied().collect();
            assert_eq!(there, Some(wanted(item)), "{} by {chunk}", item.name);
            assert_eq!(credit, item.bytes, "{} by {chunk}", item.name);
            let shape = item.shape.iter().product::<u64>();
            assert_eq!(shape * if item.dtype == "U8" { 1 } else { ELEMENT }, item.bytes);
        }
        memories.iter().flatten().flatten().count()
    };
    CHUNKS.into_iter().map(copied).collect()
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.items.iter().map(|item| item.name.as_str()).collect()
}

#[test]
fn objects_are_copied_as_they_are_with_what_lies_between_their_tensors() {
    let manifest = manifest();
    let plan = Plan::new(&manifest, &Selection::default(), Layout::PerObject).unwrap();
    assert_eq!(names(&plan), ["cube", "none", "wide", "bias", "notes", "empty"]);
    assert_eq!(plan.memories.len(), 3);
    assert_eq!(check(&plan, &manifest, None), [150; CHUNKS.len()]);
}

#[test]
fn tensors_are_copied_alone_in_the_order_of_the_manifest() {
    let manifest = manifest();
    let plan = Plan::new(&manifest, &Selection::default(), Layout::PerTensor).unwrap();
    assert_eq!(names(&plan), ["wide", "none", "cube", "bias"]);
    assert_eq!(check(&plan, &manifest, None), [42 + 48 + 10; CHUNKS.len()]);
}

#[test]
fn slices_of_all_ranks_are_the_tensors_whatever_the_chunks() {
    let manifest = manifest();
    for (dim, ranks) in (0..3_u32).flat_map(|dim| (1..=4).map(move |ranks| (dim, ranks))) {
        for rank in 0..ranks {
            let shard = Shard::new(rank, ranks).unwrap().along("**", dim).unwrap();
            let selection = Selection { shard: Some(shard), ..Selection::default() };
            let cut = Some((dim as usize, u64::from(rank), u64::from(ranks)));
            let spread = Plan::new(&manifest, &selection, Layout::PerTensor).unwrap();
            let bytes: u64 = spread.items.iter().map(|item| item.bytes).sum();
            assert_eq!(check(&spread, &manifest, cut), [usize_of(bytes); CHUNKS.len()]);
            let packed = Plan::new(&manifest, &selection, Layout::PerObject).unwrap();
            assert_eq!(check(&packed, &manifest, cut), [usize_of(bytes); CHUNKS.len()]);
            assert_eq!(packed.memories.len(), 1, "nothing of the others is wanted");
            assert!(packed.items.iter().all(|item| item.offset.is_multiple_of(ALIGN)));
        }
    }
}

#[test]
fn only_what_is_selected_is_copied() {
    let manifest = manifest();
    let tensors = Selection { tensors: vec!["*i*".to_owned()], ..Selection::default() };
    let plan = Plan::new(&manifest, &tensors, Layout::PerTensor).unwrap();
    assert_eq!(names(&plan), ["wide", "bias"]);
    assert_eq!(check(&plan, &manifest, None), [42 + 10; CHUNKS.len()]);
    let objects = Selection { objects: vec!["n*".to_owned()], ..Selection::default() };
    let plan = Plan::new(&manifest, &objects, Layout::PerObject).unwrap();
    assert_eq!((names(&plan), plan.memories.len()), (vec!["notes"], 1));
    assert_eq!(check(&plan, &manifest, None), [30; CHUNKS.len()]);
}

#[test]
fn targets_are_filled_and_whose_turn_it_is_follows_their_order() {
    let manifest = manifest();
    let device = FakeDevice::new(1.0);
    let memory = Arc::new(device.allocate(300).unwrap());
    let target = |name: &str, offset| {
        let memory = Arc::clone(&memory);
        Target { name: name.to_owned(), memory, offset }
    };
    // Against the order in which they lie, and a tensor of an object that is there as a whole too.
    let wanted = ["notes", "bias", "wide", "model", "cube"];
    let targets = (0..).zip(wanted).map(|(place, name)| target(name, place * 17)).collect();
    let plan = Plan::new(&manifest, &Selection::default(), Layout::Into(targets)).unwrap();
    assert_eq!(names(&plan), wanted);
    assert_eq!(check(&plan, &manifest, None), [30 + 10 + 42 + 120 + 48; CHUNKS.len()]);
    let whole = |index: usize| Extent {
        object: ObjectIndex(index),
        object_range: 0..manifest.objects()[index].bytes,
        slot_range: 0..usize_of(manifest.objects()[index].bytes),
    };
    let copies = (0..3).flat_map(|index| plan.copies(&whole(index)));
    let mut copies: Vec<PlannedCopy> = copies.collect();
    copies.sort_by_key(|copy| copy.order);
    let turns: Vec<(Option<u64>, Vec<usize>)> = copies
        .iter()
        .map(|copy| (copy.order, copy.credits.iter().map(|(item, _)| *item).collect()))
        .collect();
    assert_eq!(turns, (0..5).map(|turn| (Some(turn as u64), vec![turn])).collect::<Vec<_>>());
}

#[test]
fn targets_that_cannot_be_are_refused() {
    let manifest = manifest();
    let device = FakeDevice::new(1.0);
    let memory = Arc::new(device.allocate(42).unwrap());
    let reason = |name: &str, offset, selection: &Selection| {
        let memory = Arc::clone(&memory);
        let target = Target { name: name.to_owned(), memory, offset };
        let plan = Plan::new(&manifest, selection, Layout::Into(vec![target]));
        plan.err().map(|error| error.reason())
    };
    let all = Selection::default();
    assert_eq!(reason("wide", 0, &all), None);
    assert_eq!(reason("wide", 1, &all), Some(Reason::BadRequest));
    assert_eq!(reason("bias", 43, &all), Some(Reason::BadRequest));
    assert_eq!(reason("bais", 0, &all), Some(Reason::UnknownTensor));
    let bias = Selection { tensors: vec!["bias".to_owned()], ..Selection::default() };
    assert_eq!(reason("bias", 0, &bias), None);
    assert_eq!(reason("wide", 0, &bias), Some(Reason::UnknownTensor));
    assert_eq!(reason("notes", 0, &bias), Some(Reason::UnknownTensor), "no whole objects");
}
