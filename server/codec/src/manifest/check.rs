//! What has to hold of a manifest before anything in it is used.

use std::collections::HashSet;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{
    CODED_SUFFIX, FORMAT, FRAME_BYTES_MAX, FRAME_BYTES_MIN, MANIFEST_NAME, ManifestError,
    NAME_BYTES_MAX, OBJECTS_MAX, PackManifest, PackedObject, SOURCE_BYTES_MAX, json,
};
use crate::encode::{LEVELS, seek_table_bytes};
use crate::tensor::{self, DIMENSIONS_MAX, TENSORS_MAX, TensorEntry};

/// Refuses other versions of the format by their number, before their other fields are looked at.
pub(super) fn format(body: &[u8]) -> Result<(), ManifestError> {
    #[derive(Deserialize)]
    struct Version {
        format: u64,
        #[serde(flatten)]
        _rest: IgnoredAny,
    }
    let version: Version = serde_json::from_slice(body).map_err(json)?;
    if version.format == u64::from(FORMAT) {
        Ok(())
    } else {
        Err(ManifestError::Format(version.format))
    }
}

pub(super) fn manifest(manifest: &PackManifest) -> Result<(), ManifestError> {
    let parameter = |what, value| Err(ManifestError::Parameter { what, value });
    if manifest.format != FORMAT {
        return Err(ManifestError::Format(manifest.format.into()));
    }
    if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&manifest.frame_bytes) {
        return parameter("frame_bytes", i64::try_from(manifest.frame_bytes).unwrap_or(i64::MAX));
    }
    if !LEVELS.contains(&manifest.level) {
        return parameter("level", manifest.level.into());
    }
    let is_mark = |mark: &String| {
        mark.len() <= SOURCE_BYTES_MAX && mark.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if !manifest.source.as_ref().is_none_or(is_mark) {
        return Err(ManifestError::Source);
    }
    if manifest.objects.len() > OBJECTS_MAX {
        return Err(ManifestError::Objects(manifest.objects.len()));
    }
    let mut names = HashSet::from([MANIFEST_NAME]);
    let mut stored_names = HashSet::from([MANIFEST_NAME]);
    for object in &manifest.objects {
        let bad = |problem| bad(object, problem);
        if !names.insert(&object.name) {
            return Err(bad("is there twice, or named as the manifest"));
        }
        if !stored_names.insert(&object.stored_name) {
            return Err(bad("is stored where something else is"));
        }
        name(object).map_err(bad)?;
        sizes(object, manifest.frame_bytes).map_err(bad)?;
        tensors(object).map_err(bad)?;
        object
            .coding(manifest.frame_bytes)
            .map_err(|problem| ManifestError::Coding { name: printable(&object.name), problem })?;
    }
    Ok(())
}

fn bad(object: &PackedObject, problem: &'static str) -> ManifestError {
    ManifestError::Object { name: printable(&object.name), problem }
}

fn printable(name: &str) -> String {
    name.chars().take(120).collect()
}

/// A name stays below the manifest, whatever reads it: no part that means another folder, and no
/// byte that ends a name early.
fn name(object: &PackedObject) -> Result<(), &'static str> {
    let PackedObject { name, stored_name, coded, .. } = object;
    if name.len() > NAME_BYTES_MAX {
        return Err("has a name longer than 1024 bytes");
    }
    if name.chars().any(char::is_control) {
        return Err("has a control character in its name");
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("has a name that is not below the manifest");
    }
    let suffix = if *coded { CODED_SUFFIX } else { "" };
    match stored_name.strip_prefix(name.as_str()) {
        Some(rest) if rest == suffix => Ok(()),
        _ => Err("is stored under another name than its own"),
    }
}

fn sizes(object: &PackedObject, frame_bytes: u64) -> Result<(), &'static str> {
    let frames = object.frames.len() as u64;
    if frames != object.bytes.div_ceil(frame_bytes) {
        return Err("has not as many frames as its bytes make");
    }
    if object.source.bytes != object.bytes {
        return Err("has another size than its source");
    }
    let stored = object
        .frames
        .iter()
        .try_fold(0u64, |sum, frame| sum.checked_add(frame.stored_bytes))
        .ok_or("has frames that overflow")?;
    let expected = if object.coded {
        stored.checked_add(seek_table_bytes(frames)).ok_or("has frames that overflow")?
    } else {
        stored
    };
    if object.stored_bytes != expected {
        return Err("is not stored in as many bytes as its frames");
    }
    let mut frames = object.frames.iter().zip(object.frames(frame_bytes));
    if object.coded {
        let bound = |plain: u64| plain + plain / 128 + 1024;
        if frames.any(|(packed, frame)| packed.stored_bytes > bound(frame.plain_bytes)) {
            return Err("has a frame that is larger than compression makes it");
        }
    } else {
        if frames.any(|(packed, frame)| packed.stored_bytes != frame.plain_bytes) {
            return Err("is stored as it is, in frames of other sizes");
        }
        if !object.planes.is_empty() {
            return Err("is stored as it is, in planes");
        }
    }
    Ok(())
}

fn tensors(object: &PackedObject) -> Result<(), &'static str> {
    let Some(tensors) = &object.tensors else { return Ok(()) };
    if tensors.len() > TENSORS_MAX {
        return Err("has more than 1048576 tensors");
    }
    let mut names = HashSet::new();
    let mut held = 0;
    for TensorEntry { name, dtype, shape, offset, bytes } in tensors {
        if name.len() > tensor::NAME_BYTES_MAX || dtype.len() > tensor::NAME_BYTES_MAX {
            return Err("has a tensor whose name is longer than 4096 bytes");
        }
        if !names.insert(name.as_str()) {
            return Err("has a tensor twice");
        }
        if shape.len() > DIMENSIONS_MAX {
            return Err("has a tensor with more than 32 dimensions");
        }
        if offset.checked_add(*bytes).is_none_or(|end| end > object.bytes) {
            return Err("has a tensor that ends after it");
        }
        // One without bytes overlaps nothing, wherever it says it is.
        if *bytes > 0 {
            if *offset < held {
                return Err("has tensors that overlap, or in another order than their bytes");
            }
            held = offset + bytes;
        }
    }
    Ok(())
}
