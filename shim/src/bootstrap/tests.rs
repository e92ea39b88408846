use super::*;
use proptest::prelude::*;
use proto::bootstrap_api::Extension;
use proto::prost::Message as _;
use proto::protobuf::{EnumOrUnknown, MessageField};
use proto::shim::oci;
use runtime_core::ErrorKind;

fn flags(id: &str, namespace: &str) -> Flags {
    Flags { id: id.into(), namespace: namespace.into(), address: "/run/c.sock".into(), ..Flags::default() }
}

fn params(id: &str, namespace: &str) -> BootstrapParams {
    BootstrapParams {
        instance_id: id.into(),
        namespace: namespace.into(),
        log_level: EnumOrUnknown::from_i32(-4),
        containerd_version: "v2.3.4".into(),
        containerd_ttrpc_address: "/run/c.sock.ttrpc".into(),
        containerd_grpc_address: "/run/c.sock".into(),
        containerd_binary: "/usr/bin/containerd".into(),
        extensions: vec![Extension { value: MessageField::some(runc_any()), ..Extension::default() }],
        socket_dir: Some("/run/sockets".into()),
        ..BootstrapParams::default()
    }
}

fn pack(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.into(), value, ..Any::default() }
}

fn runc_any() -> Any {
    let options = oci::Options { shim_cgroup: "/shims".into(), systemd_cgroup: true, ..oci::Options::default() };
    pack("containerd.runc.v1.Options", options.write_to_bytes().unwrap())
}

fn runtime_any() -> Any {
    let options = proto::runtimeoptions::Options { config_body: b"SystemdCgroup = true\n".to_vec(), ..Default::default() };
    pack("runtimeoptions.v1.Options", options.encode_to_vec())
}

/// Ids and namespaces that are what the other message would hold.
const LOOK_ALIKES: &[(&str, &str)] = &[
    ("web", "k8s.io"),
    ("containerd.runc.v1.Options", "default"),
    ("runtimeoptions.v1.Options", "moby"),
    ("type.googleapis.com_containerd.runc.v1.Options", "x"),
    ("\"", "\u{1}"),
    ("*", "J"),
    ("08", "\u{7f}"),
    ("é世", "ns"),
];

#[test]
fn bootstrap_parameters_are_taken_by_what_they_name() {
    for (id, namespace) in LOOK_ALIKES {
        let message = params(id, namespace);
        assert_eq!(classify(&message.write_to_bytes().unwrap(), id, namespace).unwrap(), Input::Params(message));
        let bare = BootstrapParams { instance_id: (*id).into(), namespace: (*namespace).into(), ..BootstrapParams::default() };
        assert_eq!(classify(&bare.write_to_bytes().unwrap(), id, namespace).unwrap(), Input::Params(bare), "{id}");
    }
}

#[test]
fn options_of_an_earlier_containerd_are_taken_as_such() {
    for (id, namespace) in LOOK_ALIKES {
        for options in [runc_any(), runtime_any(), pack("containerd.runc.v1.Options", Vec::new())] {
            let wire = options.write_to_bytes().unwrap();
            assert_eq!(classify(&wire, id, namespace).unwrap(), Input::Options(options), "{id}");
        }
    }
    assert_eq!(classify(&[], "web", "k8s.io").unwrap(), Input::Nothing);
}

#[test]
fn parameters_for_another_shim_are_refused() {
    let wire = params("other", "k8s.io").write_to_bytes().unwrap();
    let error = classify(&wire, "web", "k8s.io").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(error.to_string(), "bootstrap parameters are for \"k8s.io/other\", the command line says \"k8s.io/web\"");
}

#[test]
fn neither_message_is_refused() {
    for input in [b"{\"instance_id\":\"web\"}".as_slice(), b"\x0a\xff", b"\x12\x01a", &[0xff; 40]] {
        let error = classify(input, "web", "k8s.io").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{input:?}");
    }
}

#[test]
fn the_newer_protocol_wins_over_flags_and_environment() {
    let environment = Environment { ttrpc_address: "/env.ttrpc".into(), ..Environment::default() };
    let wire = params("web", "k8s.io").write_to_bytes().unwrap();
    let bootstrap = Bootstrap::resolve(&flags("web", "k8s.io"), &wire, &environment).unwrap();
    assert_eq!(bootstrap.ttrpc_address, "/run/c.sock.ttrpc");
    assert_eq!(bootstrap.socket_dir, PathBuf::from("/run/sockets"));
    assert_eq!(bootstrap.log_level, LevelFilter::Debug);
    assert_eq!(bootstrap.containerd_version, "v2.3.4");
    assert_eq!(bootstrap.extensions, [runc_any()]);
    assert_eq!(bootstrap.protocol, Protocol::Bootstrap);
}

#[test]
fn an_earlier_containerd_speaks_by_flags_and_environment() {
    let environment = Environment { ttrpc_address: "/env.ttrpc".into(), grpc_address: "/env.grpc".into(), ..Environment::default() };
    let debug = Flags { debug: true, address: String::new(), ..flags("web", "k8s.io") };
    let bootstrap = Bootstrap::resolve(&debug, &[], &environment).unwrap();
    assert_eq!(bootstrap.ttrpc_address, "/env.ttrpc");
    assert_eq!(bootstrap.grpc_address, "/env.grpc");
    assert_eq!(bootstrap.socket_dir, PathBuf::from("/run/containerd/s"));
    assert_eq!(bootstrap.log_level, LevelFilter::Debug);
    assert_eq!(bootstrap.protocol, Protocol::Legacy);
}

#[test]
fn an_unknown_log_level_is_the_nearest_known_one() {
    for (wire, level) in
        [(-9, LevelFilter::Trace), (-4, LevelFilter::Debug), (0, LevelFilter::Info), (1, LevelFilter::Info), (99, LevelFilter::Error)]
    {
        let message = BootstrapParams { log_level: EnumOrUnknown::from_i32(wire), ..params("web", "k8s.io") };
        let bytes = message.write_to_bytes().unwrap();
        let bootstrap = Bootstrap::resolve(&flags("web", "k8s.io"), &bytes, &Environment::default()).unwrap();
        assert_eq!(bootstrap.log_level, level, "{wire}");
    }
}

#[test]
fn the_answer_fits_the_caller() {
    let address = "unix:///run/containerd/s/00";
    let answer = |input: &[u8], wish: &str| {
        let environment = Environment { task_api: wish.into(), ..Environment::default() };
        Bootstrap::resolve(&flags("web", "k8s.io"), input, &environment).unwrap().reply(address).unwrap()
    };
    assert_eq!(answer(&[], ""), address.as_bytes());
    let json: serde_json::Value = serde_json::from_slice(&answer(&[], "3")).unwrap();
    assert_eq!(json, serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" }));
    let wire = params("web", "k8s.io").write_to_bytes().unwrap();
    for (wish, version) in [("", 2), ("2", 2), ("3", 3)] {
        let reply = answer(&wire, wish);
        assert_eq!(reply.first(), Some(&0x08));
        assert!(reply.last().is_some_and(u8::is_ascii_alphabetic));
        let result = BootstrapResult::parse_from_bytes(&reply).unwrap();
        assert_eq!((result.version, result.address.as_str(), result.protocol.as_str()), (version, address, "ttrpc"));
    }
    let environment = Environment { task_api: "4".into(), ..Environment::default() };
    let error = Bootstrap::resolve(&flags("web", "k8s.io"), &[], &environment).unwrap_err();
    assert_eq!(error.to_string(), "CORACLE_TASK_API=\"4\": want 2 or 3");
}

#[test]
fn the_cgroup_driver_comes_by_the_environment() {
    let resolve = |driver: &str| {
        let environment = Environment { cgroup_driver: driver.into(), ..Environment::default() };
        Bootstrap::resolve(&flags("web", "k8s.io"), &[], &environment).map(|bootstrap| bootstrap.systemd_cgroup)
    };
    for (driver, by_systemd) in [("", None), ("cgroupfs", Some(false)), ("systemd", Some(true))] {
        assert_eq!(resolve(driver).unwrap(), by_systemd, "{driver}");
    }
    assert_eq!(resolve("Systemd").unwrap_err().to_string(), "CORACLE_CGROUP_DRIVER=\"Systemd\": want cgroupfs or systemd");
}

#[test]
fn an_unusable_identifier_is_refused() {
    for (id, namespace) in [("", "ns"), ("id", ""), ("a/b", "ns"), ("..", "ns"), ("a\nb", "ns"), ("id", "\u{1b}[31m")] {
        let error = Bootstrap::resolve(&flags(id, namespace), &[], &Environment::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{id:?} {namespace:?}");
    }
}

#[test]
fn flags_are_read_as_go_reads_them() {
    let arguments = ["--namespace=ns", "-address", "/a", "-publish-binary", "/b", "-id=x", "-debug", "-bundle", "/c", "start"];
    let flags = containerd_shim::parse(&arguments).unwrap();
    assert_eq!((flags.namespace.as_str(), flags.address.as_str(), flags.id.as_str()), ("ns", "/a", "x"));
    assert_eq!((flags.bundle.as_str(), flags.debug, flags.action.as_str()), ("/c", true, "start"));
    assert!(containerd_shim::parse(&["-unknown", "start"]).is_err());
    assert!(containerd_shim::parse(&["-id"]).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_classified_without_a_panic(input in proptest::collection::vec(any::<u8>(), 0..200), id in "[a-z]{1,8}") {
        let _ = classify(&input, &id, "ns");
    }

    #[test]
    fn damaged_messages_are_classified_without_a_panic(at in 0usize..120, byte: u8, cut in 0usize..160) {
        let mut wire = params("web", "k8s.io").write_to_bytes().unwrap();
        let place = at % wire.len();
        wire[place] = byte;
        wire.truncate(cut.max(1));
        let _ = classify(&wire, "web", "k8s.io");
    }

    #[test]
    fn identity_decides(id in "[ -~]{1,20}", namespace in "[ -~]{1,20}", url in "[a-z.]{1,12}", value in proptest::collection::vec(any::<u8>(), 0..40)) {
        let ours = params(&id, &namespace);
        prop_assert_eq!(classify(&ours.write_to_bytes().unwrap(), &id, &namespace).unwrap(), Input::Params(ours));
        let options = pack(&url, value);
        prop_assume!(!(options.type_url == id && options.value == namespace.as_bytes()));
        prop_assert_eq!(classify(&options.write_to_bytes().unwrap(), &id, &namespace).unwrap(), Input::Options(options));
    }
}
