//! The store that everybody reads from: nginx, which hands files out with `sendfile`.
//!
//! It is a real range server, costs next to nothing beside its clients, and knows entity tags and
//! `If-Match`. A listing is prepared, so that clients of S3 can list and read; signatures are
//! ignored. Every request is logged with the bytes of its body, which is how what was sent is
//! counted without trusting a client. Where nginx is missing, our own raw origin serves the same
//! files: that lists nothing, so peers that list do not run.

use std::fmt::Write as _;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use forebay_testkit::{Checkpoint, RawFiles, RawOptions, RawOrigin};
use tokio::time::sleep;

use super::adapter::{BUCKET, PREFIX};
use crate::Outcome;

/// How often it is looked at, and how often until it has to be as expected.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const LOOKS_MAX: usize = 100;

/// A running server; dropping it ends it.
#[derive(Debug)]
pub(super) enum Server {
    /// With its log.
    Nginx { child: Child, address: SocketAddr, log: PathBuf },
    /// Ours.
    Raw(RawOrigin),
}

impl Server {
    /// Serves `root`, below which the files of the bucket lie; a note if not by nginx.
    pub(super) async fn start(root: &Path, made: &Checkpoint) -> Outcome<(Self, Option<String>)> {
        let work = root.with_extension("nginx");
        std::fs::create_dir_all(work.join("tmp"))?;
        let there = Command::new("nginx").arg("-v").stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            let files = RawFiles::checkpoint(&format!("{BUCKET}/{PREFIX}"), made)?;
            let origin = RawOrigin::start(RawOptions::default(), &files)?;
            let note = "nginx is not installed (apt-get install nginx-light): our raw origin \
                        serves instead, which lists nothing";
            return Ok((Self::Raw(origin), Some(note.to_owned())));
        }
        let listing = listing(&root.join(BUCKET).join(PREFIX))?;
        std::fs::write(work.join("list.xml"), listing)?;
        // Free now, and by all odds when nginx comes to it.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let as_root = rustix::process::geteuid().is_root();
        std::fs::write(work.join("conf"), configuration(root, &work, address, as_root))?;
        let printed = File::create(work.join("printed"))?;
        let child = Command::new("nginx")
            .args(["-g", "daemon off;", "-p"])
            .arg(&work)
            .arg("-c")
            .arg(work.join("conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(printed)
            .spawn()?;
        let mut server = Self::Nginx { child, address, log: work.join("sent") };
        server.until_up(&work).await?;
        Ok((server, None))
    }

    async fn until_up(&mut self, work: &Path) -> Outcome<()> {
        let Self::Nginx { child, address, .. } = self else { return Ok(()) };
        for _ in 0..LOOKS_MAX {
            if TcpStream::connect(*address).is_ok() {
                return Ok(());
            }
            if child.try_wait()?.is_some() {
                break;
            }
            sleep(LOOK_AGAIN).await;
        }
        Err(format!("nginx does not serve: {}", std::fs::read_to_string(work.join("printed"))?)
            .into())
    }

    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Nginx { address, .. } => *address,
            Self::Raw(origin) => origin.address(),
        }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The checkpoint, as a daemon is asked for it.
    pub(super) fn uri(&self) -> String {
        match self {
            Self::Nginx { .. } => format!("s3://{BUCKET}/{PREFIX}"),
            Self::Raw(_) => format!("{}/{BUCKET}/{PREFIX}", self.endpoint()),
        }
    }

    /// Bytes of bodies that were sent so far, once all requests are over: nginx logs each at its
    /// end.
    pub(super) async fn sent(&self) -> Outcome<u64> {
        let mut last = self.sent_by_now()?;
        for _ in 0..LOOKS_MAX {
            sleep(LOOK_AGAIN * 4).await;
            let now = self.sent_by_now()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
        Err("the server does not come to rest".into())
    }

    fn sent_by_now(&self) -> Outcome<u64> {
        match self {
            Self::Nginx { log, .. } => {
                let lines = std::fs::read_to_string(log)?;
                Ok(lines.lines().map(str::parse::<u64>).sum::<Result<_, _>>()?)
            }
            Self::Raw(origin) => Ok(origin.counts().body_bytes),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Self::Nginx { child, .. } = self else { return };
        // Its workers end with it only if it is asked to end.
        let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let ask = |id| rustix::process::kill_process(id, rustix::process::Signal::TERM);
        if id.is_none_or(|id| ask(id).is_err()) {
            drop(child.kill());
        }
        drop(child.wait());
    }
}

/// What `ListObjectsV2` answers; entity tags are those that nginx makes of a file.
fn listing(dir: &Path) -> Outcome<String> {
    let mut xml = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">",
    );
    write!(xml, "<Name>{BUCKET}</Name><Prefix>{PREFIX}</Prefix><MaxKeys>1000</MaxKeys>")?;
    xml += "<IsTruncated>false</IsTruncated>";
    let mut names: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    names.sort_by_key(std::fs::DirEntry::file_name);
    for entry in names {
        let (name, about) = (entry.file_name(), entry.metadata()?);
        let (name, bytes, time) = (name.display(), about.len(), about.mtime());
        write!(
            xml,
            "<Contents><Key>{PREFIX}{name}</Key>\
             <LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <ETag>&quot;{time:x}-{bytes:x}&quot;</ETag><Size>{bytes}</Size>\
             <StorageClass>STANDARD</StorageClass></Contents>"
        )?;
    }
    xml += "</ListBucketResult>";
    Ok(xml)
}

fn configuration(root: &Path, work: &Path, address: SocketAddr, as_root: bool) -> String {
    // Workers of another user could not read a directory of temporary files.
    let user = if as_root { "user root;" } else { "" };
    let (root, work) = (root.display(), work.display());
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("  {what}_temp_path {work}/tmp;\n"))
        .concat();
    format!(
        "worker_processes 2; pid {work}/pid; error_log {work}/errors; {user}\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  log_format sent '$body_bytes_sent'; access_log {work}/sent sent;\n  \
         sendfile on; tcp_nopush on; sendfile_max_chunk 2m; output_buffers 2 512k;\n  \
         keepalive_requests 1000000; keepalive_timeout 300s; send_timeout 900s;\n{temporary}  \
         default_type application/octet-stream;\n  \
         server {{\n    listen {address} backlog=1024; root {root};\n    \
         location = /{BUCKET} {{ default_type application/xml; alias {work}/list.xml; }}\n    \
         location = /{BUCKET}/ {{ default_type application/xml; root {work}; \
         try_files /list.xml =404; }}\n  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_has_every_file_with_the_tag_that_nginx_gives_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.json"), "{}").unwrap();
        std::fs::write(dir.path().join("a.safetensors"), [0; 300]).unwrap();
        let time = std::fs::metadata(dir.path().join("b.json")).unwrap().mtime();
        let xml = listing(dir.path()).unwrap();
        let (a, b) = (xml.find("llama/a.safetensors").unwrap(), xml.find("llama/b.json").unwrap());
        assert!(a < b && xml.contains("<Size>300</Size>"), "{xml}");
        assert!(xml.contains(&format!("<ETag>&quot;{time:x}-2&quot;</ETag>")), "{xml}");
    }

    #[test]
    fn only_root_names_the_user_of_the_workers() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        let conf = |root| configuration(Path::new("/r"), Path::new("/w"), address, root);
        assert!(conf(true).contains("user root;") && !conf(false).contains("user root;"));
        assert!(conf(false).contains("listen 127.0.0.1:8080 "));
    }
}
