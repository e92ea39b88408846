use super::*;
use crate::net::node::Node;

const FILE: &str = r#"
    [networks.back]
    subnets = ["10.1.0.0/24", "fd00:1::/64"]
    [networks.lan]
    subnets = ["10.2.0.0/24"]
    macvlan = "eth0"
    [namespaces.default]
    modes = ["bridge", "host", "none", "macvlan"]
    ports = ["1-65535"]
    join = true
    [namespaces.narrow]
    ports = ["8000-8010/tcp"]
"#;

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.toml");
    std::fs::write(&path, FILE).unwrap();
    Node::load(&path).unwrap().unwrap()
}

fn asked_in(namespace: &str, given: &[(&str, &str)]) -> Result<Option<Asked>> {
    let annotations = given.iter().map(|(key, value)| (format!("coracle.{key}"), (*value).to_owned())).collect();
    Asked::of(&annotations, &node(), namespace)
}

fn asked(given: &[(&str, &str)]) -> Asked {
    asked_in("default", given).unwrap().unwrap()
}

#[test]
fn modes() {
    for (text, mode) in [
        ("bridge", Mode::Network(DEFAULT.to_owned())),
        ("back", Mode::Network("back".to_owned())),
        ("lan", Mode::Network("lan".to_owned())),
        ("host", Mode::Host),
        ("none", Mode::None),
        ("container:a.b", Mode::Container("a.b".to_owned())),
        ("ns:/run/netns/x", Mode::Path("/run/netns/x".into())),
    ] {
        assert_eq!(asked(&[("network", text)]).mode, mode, "{text}");
    }
}

#[test]
fn nothing_is_asked_for_where_the_file_does_not_list_the_namespace() {
    assert_eq!(asked_in("other", &[("network", "nonsense")]).unwrap(), None);
    assert_eq!(asked_in("default", &[]).unwrap(), None);
}

#[test]
fn ports_of_all_forms() {
    let of = |text: &str| asked(&[("network", "bridge"), ("ports", text)]).ports;
    let shown = |text: &str| of(text).iter().map(|port| format!("{port}>{}", port.port)).collect::<Vec<_>>();
    assert_eq!(shown("8080:80/tcp, 5353:53/udp"), ["8080/tcp>80", "5353/udp>53"]);
    assert_eq!(shown("127.0.0.1:8080:80,[fd00::9]:8080:80"), ["127.0.0.1:8080/tcp>80", "[fd00::9]:8080/tcp>80"]);
    assert_eq!(shown("0.0.0.0:80:80"), ["80/tcp>80"]);
    assert_eq!(shown("8000-8002:9000-9002"), ["8000/tcp>9000", "8001/tcp>9001", "8002/tcp>9002"]);
}

#[test]
fn rates() {
    let asked = asked(&[("network", "bridge"), ("ingress-rate", "10M"), ("egress-rate", "1G"), ("egress-burst", "80M")]);
    assert_eq!(asked.ingress, Some(Rate { rate: 10_000_000, burst: 1 << 20 }));
    assert_eq!(asked.egress, Some(Rate { rate: 1_000_000_000, burst: 80_000_000 }));
}

#[test]
fn each_refusal_names_its_annotation() {
    let bridge = ("network", "bridge");
    for (namespace, given, want) in [
        ("default", vec![("ports", "1:1")], "annotations[\"coracle.ports\"]: needs coracle.network"),
        ("default", vec![bridge, ("prots", "1:1")], "annotations[\"coracle.prots\"]: there is no such annotation"),
        ("default", vec![("network", "x:y")], "annotations[\"coracle.network\"]: \"x:y\" is none of"),
        ("default", vec![("network", "ns:run")], "annotations[\"coracle.network\"]: \"ns:run\" is none of"),
        (
            "default",
            vec![("network", "nope")],
            "annotations[\"coracle.network\"]: there is no network \"nope\"; there are back, coracle0, lan",
        ),
        ("default", vec![("network", "container:../a")], "is none of"),
        ("narrow", vec![("network", "host")], "host is not allowed here (modes)"),
        ("narrow", vec![("network", "lan")], "macvlan is not allowed here (modes)"),
        ("narrow", vec![("network", "container:a")], "joining is not allowed here (join)"),
        ("narrow", vec![bridge, ("ports", "80:80")], "annotations[\"coracle.ports\"]: host port 80/tcp is not allowed here (ports)"),
        ("default", vec![bridge, ("ports", "80")], "annotations[\"coracle.ports\"]: \"80\" is not"),
        ("default", vec![bridge, ("ports", "0:80")], "\"0:80\" is not"),
        ("default", vec![bridge, ("ports", "70000:80")], "\"70000:80\" is not"),
        ("default", vec![bridge, ("ports", "1:1/sctp")], "is not [<address>:]"),
        ("default", vec![bridge, ("ports", "[::1]:1:1")], "the kernel lets no packet from ::1 leave"),
        ("default", vec![bridge, ("ports", "1-2:1-3")], "2 ports lead to 3"),
        ("default", vec![bridge, ("ports", "1:1,127.0.0.1:1:2")], "host port 127.0.0.1:1/tcp is given twice"),
        ("default", vec![bridge, ("ports", "1-2000:1-2000")], "2000 ports, at most 1024"),
        ("default", vec![("network", "lan"), ("ports", "1:1")], "annotations[\"coracle.ports\"]: needs a bridge network"),
        ("default", vec![("network", "none"), ("aliases", "a")], "annotations[\"coracle.aliases\"]: needs a network"),
        ("default", vec![bridge, ("aliases", "a b")], "annotations[\"coracle.aliases\"]: \"a b\" cannot be a host's name"),
        ("default", vec![bridge, ("aliases", "1.2.3.4")], "cannot be a host's name"),
        ("default", vec![bridge, ("dns", "x")], "annotations[\"coracle.dns\"]: \"x\" is no address"),
        ("default", vec![("network", "host"), ("dns", "1.1.1.1")], "annotations[\"coracle.dns\"]: needs a namespace"),
        ("default", vec![bridge, ("dns-options", "a\nb")], "is no option"),
        ("default", vec![bridge, ("address", "10.3.0.1")], "annotations[\"coracle.address\"]: 10.3.0.1 is in no subnet"),
        ("default", vec![("network", "back"), ("address", "10.1.0.1")], "10.1.0.1 is not a container's"),
        ("default", vec![("network", "back"), ("address", "10.1.0.2,10.1.0.3")], "10.1.0.3 is the second of 10.1.0.0/24"),
        ("default", vec![bridge, ("ingress-rate", "fast")], "annotations[\"coracle.ingress-rate\"]: \"fast\" is no number of bits"),
        ("default", vec![bridge, ("egress-burst", "1M")], "annotations[\"coracle.egress-burst\"]: needs coracle.egress-rate"),
    ] {
        let said = asked_in(namespace, &given).unwrap_err().to_string();
        assert!(said.contains(want), "{given:?}: {said}");
    }
}
