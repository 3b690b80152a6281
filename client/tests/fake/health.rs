//! What the fake daemon says of its machine and of what it can do.

use forebay_proto::pb;

/// A check of everything; something does not work if it is ill.
pub(super) fn checked(ill: bool) -> pb::DoctorResponse {
    let check =
        |group: &str, name: &str, verdict: &str, found: &str, advice: &str| pb::DoctorCheck {
            group: group.into(),
            name: name.into(),
            verdict: verdict.into(),
            found: found.into(),
            advice: advice.into(),
        };
    let mut checks = vec![
        check("daemon", "forebayd", "ok", "fake, up 1 s", ""),
        check("nvme", "io_uring", "warn", "for nobody", "set the sysctl"),
    ];
    if ill {
        checks.push(check("credentials", "found", "bad", "s3://b: none", "give it a profile"));
    }
    pb::DoctorResponse { checks }
}

/// An origin that was measured, and a decoder that was not.
pub(super) fn capacity() -> pb::CapacityResponse {
    let origin = pb::StageCapacity {
        stage: "origin".into(),
        of: "s3://b".into(),
        bytes_per_second: Some(2.5e9),
        method: "the best second".into(),
        age_seconds: 7.0,
        busy_seconds: 3.0,
        concurrency: 23.5,
        workers: 24,
        worker_bytes_per_second: None,
        present_bytes_per_second: 5e8,
        utilisation: Some(0.2),
        headroom_bytes_per_second: Some(2e9),
    };
    let decompress = pb::StageCapacity { stage: "decompress".into(), ..Default::default() };
    let stage =
        |stage: &str, bytes_per_second| pb::LoadStage { stage: stage.into(), bytes_per_second };
    let cold = pb::LoadCapacity {
        kind: "cold".into(),
        of: "s3://b".into(),
        bytes_per_second: Some(2.5e9),
        limited_by: "origin".into(),
        headroom_bytes_per_second: Some(2e9),
        stages: vec![stage("origin", Some(2.5e9)), stage("handoff", None)],
    };
    let packed = pb::LoadCapacity {
        kind: "packed".into(),
        of: "s3://b".into(),
        stages: vec![stage("origin", None), stage("decompress", None)],
        ..Default::default()
    };
    pb::CapacityResponse {
        stages: vec![origin, decompress],
        loads: vec![cold, packed],
        window_seconds: 300.0,
    }
}
