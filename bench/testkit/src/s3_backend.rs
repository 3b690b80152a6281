//! The operations of an S3 origin over its contents, between s3s's types and ours.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use http::HeaderMap;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumType,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, ETag, GetObjectInput,
    GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output,
    PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use crate::claims::base64;
use crate::contents::{Contents, Object};
use crate::head::{self, Answering, Reject};
use crate::plan::Bend;
use crate::uploads::Unfit;

/// The operations, over the contents.
pub(crate) struct S3Backend {
    pub(crate) contents: Contents,
    pub(crate) page_keys: usize,
}

impl S3Backend {
    fn has(&self, bucket: &str) -> S3Result<()> {
        self.contents.has_bucket(bucket).then_some(()).ok_or_else(|| s3_error!(NoSuchBucket))
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<Arc<Object>> {
        match self.contents.object(bucket, key) {
            Some(object) => Ok(object),
            None if self.contents.has_bucket(bucket) => Err(s3_error!(NoSuchKey)),
            None => Err(s3_error!(NoSuchBucket)),
        }
    }
}

fn answering(object: &Object) -> Answering {
    Answering { etag: Some(format!("\"{}\"", object.etag)), ranges: true }
}

/// What the request's headers select; s3s has checked that they are well formed.
fn select(object: &Object, headers: &HeaderMap, bend: Bend) -> S3Result<(Range<u64>, bool)> {
    head::select(object, headers, &answering(object), bend).map_err(|reject| match reject {
        Reject::Precondition => s3_error!(PreconditionFailed),
        Reject::Range => {
            let mut headers = HeaderMap::new();
            let range = format!("bytes */{}", object.content.len());
            head::set(&mut headers, "content-range", &range);
            let mut error = s3_error!(InvalidRange);
            error.set_headers(headers);
            error
        }
    })
}

fn modified(object: &Object) -> Timestamp {
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(object.modified_seconds());
    time.into()
}

/// What is told of an object's bytes to who asks.
fn claims(object: &Object) -> HeadObjectOutput {
    let told = object.checksums;
    HeadObjectOutput {
        checksum_crc64nvme: told.crc64_nvme.map(|crc| base64(&crc.to_be_bytes())),
        checksum_crc32c: told.crc32c.map(|crc| base64(&crc.to_be_bytes())),
        checksum_sha256: told.sha256.map(|sha| base64(&sha)),
        checksum_type: Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
        ..HeadObjectOutput::default()
    }
}

/// A request's body; s3s compares it with the digest that was signed as it comes.
async fn received(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.try_next().await.map_err(|_| s3_error!(IncompleteBody))? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

fn unfit(unfit: Unfit) -> s3s::S3Error {
    match unfit {
        Unfit::NoUpload => s3_error!(NoSuchUpload),
        Unfit::Part => s3_error!(InvalidPart),
        Unfit::TooSmall => s3_error!(EntityTooSmall),
    }
}

fn signed(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}

#[async_trait]
impl S3 for S3Backend {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let object = self.find(&request.input.bucket, &request.input.key)?;
        let bend = request.extensions.get::<Bend>().copied().unwrap_or_default();
        let (range, partial) = select(&object, &request.headers, bend)?;
        let total = object.content.len();
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: signed(range.end - range.start),
            content_range: partial
                .then(|| format!("bytes {}-{}/{total}", range.start, range.end - 1)),
            content_type: Some("application/octet-stream".into()),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(modified(&object)),
            body: Some(StreamingBlob::wrap(head::body(&object, range, bend))),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.find(&request.input.bucket, &request.input.key)?;
        let (range, _) = select(&object, &request.headers, Bend::default())?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: signed(range.end - range.start),
            content_type: Some("application/octet-stream".into()),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(modified(&object)),
            ..request
                .input
                .checksum_mode
                .map_or_else(HeadObjectOutput::default, |_| claims(&object))
        }))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let PutObjectInput { bucket, key, body, .. } = request.input;
        self.has(&bucket)?;
        self.contents.put(&bucket, &key, received(body).await?);
        let e_tag = Some(ETag::Strong(self.find(&bucket, &key)?.etag.clone()));
        Ok(S3Response::new(PutObjectOutput { e_tag, ..PutObjectOutput::default() }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.has(&request.input.bucket)?;
        self.contents.remove(&request.input.bucket, &request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let CreateMultipartUploadInput { bucket, key, .. } = request.input;
        self.has(&bucket)?;
        let upload_id = Some(self.contents.begin(&bucket, &key));
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            upload_id,
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let UploadPartInput { upload_id, part_number, body, .. } = request.input;
        let number = u32::try_from(part_number).map_err(|_| s3_error!(InvalidArgument))?;
        let tag = self.contents.part(&upload_id, number, received(body).await?).map_err(unfit)?;
        let e_tag = Some(ETag::Strong(tag));
        Ok(S3Response::new(UploadPartOutput { e_tag, ..UploadPartOutput::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let CompleteMultipartUploadInput { bucket, key, upload_id, multipart_upload, .. } =
            request.input;
        let parts = multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let parts: Option<Vec<(u32, String)>> = (parts.into_iter())
            .map(|part| Some((u32::try_from(part.part_number?).ok()?, part.e_tag?.into_value())))
            .collect();
        let parts = parts.ok_or_else(|| s3_error!(MalformedXML))?;
        let tag = self.contents.complete(&upload_id, &parts).map_err(unfit)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            e_tag: Some(ETag::Strong(tag)),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let known = self.contents.give_up(&request.input.upload_id);
        let done = || S3Response::new(AbortMultipartUploadOutput::default());
        known.then(done).ok_or_else(|| s3_error!(NoSuchUpload))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented));
        }
        if !self.contents.has_bucket(&input.bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        let asked = input.max_keys.and_then(|keys| usize::try_from(keys).ok());
        let limit = asked.unwrap_or(self.page_keys).min(self.page_keys);
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or_else(|| input.start_after.clone());
        let page = self.contents.page(&input.bucket, &prefix, after.as_deref(), limit);
        let contents: Vec<_> =
            page.objects.iter().map(|(key, object)| listed(key, object)).collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            key_count: i32::try_from(contents.len()).ok(),
            max_keys: i32::try_from(limit).ok(),
            contents: Some(contents),
            continuation_token: input.continuation_token,
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next,
            ..ListObjectsV2Output::default()
        }))
    }
}

fn listed(key: &str, object: &Object) -> s3s::dto::Object {
    s3s::dto::Object {
        key: Some(key.to_owned()),
        size: signed(object.content.len()),
        e_tag: Some(ETag::Strong(object.etag.clone())),
        last_modified: Some(modified(object)),
        ..s3s::dto::Object::default()
    }
}
