use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::device_filter::compile;
use super::*;

fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
    DeviceRule { allow, kind: kind.to_owned(), major: Some(major), minor: Some(minor), access: access.to_owned() }
}

fn policy(rules: &[DeviceRule]) -> Result<Policy> {
    let mut policy = Policy { allow: false, exceptions: BTreeMap::new() };
    rules.iter().try_for_each(|rule| policy.apply(rule))?;
    Ok(policy)
}

/// One thing a process may try: all bits of `access` at once.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    kind: Kind,
    major: u32,
    minor: u32,
    access: Access,
}

impl Attempt {
    fn matches(self, devices: Devices) -> bool {
        devices.kind == self.kind
            && devices.major.is_none_or(|major| major == self.major)
            && devices.minor.is_none_or(|minor| minor == self.minor)
    }

    /// The kernel's `devcgroup_legacy_check_permission`.
    fn allowed(self, policy: &Policy) -> bool {
        let mut matching = policy.exceptions.iter().filter(|(devices, _)| self.matches(**devices));
        if policy.allow {
            !matching.any(|(_, access)| access.intersects(self.access))
        } else {
            matching.any(|(_, access)| access.contains(self.access))
        }
    }

    /// What the compiled program answers.
    fn filtered(self, program: &[u8]) -> bool {
        let context: Vec<u8> =
            [self.access.bits() << 16 | self.kind as u32, self.major, self.minor].iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut context = context;
        rbpf::EbpfVmRaw::new(Some(program)).unwrap().execute_program(&mut context).unwrap() == 1
    }
}

fn bytes(policy: &Policy) -> Vec<u8> {
    let words = |insn: crate::sys::bpf::Insn| {
        let mut bytes = vec![insn.code, insn.registers];
        bytes.extend(insn.offset.to_le_bytes());
        bytes.extend(insn.immediate.to_le_bytes());
        bytes
    };
    compile(policy).into_iter().flat_map(words).collect()
}

/// The rules as their authors mean them, independent of [`Policy`]: the last rule that covers a single access decides it.
fn intended(rules: &[DeviceRule], attempt: Attempt) -> bool {
    let covers = |rule: &&DeviceRule| {
        let all = matches!(rule.kind.as_str(), "" | "a");
        let kind = if rule.kind == "b" { Kind::Block } else { Kind::Char };
        let devices = Devices { kind, major: number(rule.major).unwrap(), minor: number(rule.minor).unwrap() };
        all || (attempt.matches(devices) && access(&rule.access).unwrap().contains(attempt.access))
    };
    rules.iter().rev().find(covers).is_some_and(|rule| rule.allow)
}

/// A model of a v1 group: applies writes the way the kernel does, exact matches only.
fn replay(list: &BTreeSet<String>, writes: &[(&str, String)]) -> Policy {
    let mut state = Policy::current(&list.iter().map(|line| format!("{line}\n")).collect::<String>());
    for (file, line) in writes {
        let allow = *file == "devices.allow";
        match parse_line(line) {
            None => state = Policy { allow, exceptions: BTreeMap::new() },
            Some((devices, access)) if allow != state.allow => state.add(devices, access),
            Some((devices, access)) => {
                let held = state.exceptions.entry(devices).or_insert(Access::empty());
                *held -= access;
                state.exceptions.retain(|_, held| !held.is_empty());
            }
        }
    }
    state
}

fn listed(policy: &Policy) -> BTreeSet<String> {
    if policy.allow {
        return BTreeSet::from(["a *:* rwm".to_owned()]);
    }
    policy.exceptions.iter().map(|(devices, access)| text(*devices, *access)).collect()
}

fn any_number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(-1), 0i64..3, Just(i64::from(u32::MAX)), Just(i64::from(i32::MAX) + 1)]
}

fn any_rule() -> impl Strategy<Value = DeviceRule> {
    let single = (any::<bool>(), "[cb]", any_number(), any_number(), "r?w?m?a?").prop_filter("access", |rule| !rule.4.is_empty());
    let single = single.prop_map(|(allow, kind, major, minor, access)| rule(allow, &kind, major, minor, &access));
    let all = any::<bool>().prop_map(|allow| DeviceRule { allow, ..DeviceRule::default() });
    prop_oneof![5 => single, 1 => all]
}

fn any_attempt() -> impl Strategy<Value = Attempt> {
    let number = || any_number().prop_map(|number| u32::try_from(number).unwrap_or(7));
    (prop_oneof![Just(Kind::Block), Just(Kind::Char)], number(), number(), 0u32..8).prop_map(|(kind, major, minor, access)| Attempt {
        kind,
        major,
        minor,
        access: Access::from_bits_truncate(access),
    })
}

proptest! {
    #[test]
    fn the_program_answers_as_version_1_would(rules in prop::collection::vec(any_rule(), 0..8), attempts in prop::collection::vec(any_attempt(), 1..40)) {
        if let Ok(policy) = policy(&rules) {
            let program = bytes(&policy);
            for attempt in attempts {
                prop_assert_eq!(attempt.filtered(&program), attempt.allowed(&policy), "{:?} of {:?}", attempt, policy);
            }
        }
    }

    #[test]
    fn the_last_rule_that_covers_an_access_decides(rules in prop::collection::vec(any_rule(), 0..8), attempts in prop::collection::vec(any_attempt(), 1..40)) {
        if let Ok(policy) = policy(&rules) {
            for attempt in attempts.into_iter().filter(|attempt| attempt.access.bits().count_ones() == 1) {
                prop_assert_eq!(attempt.allowed(&policy), intended(&rules, attempt), "{:?}", attempt);
            }
        }
    }

    #[test]
    fn a_transition_ends_at_the_policy_asked_for(
        from in prop::collection::vec(any_rule(), 0..8),
        to in prop::collection::vec(any_rule(), 0..8),
    ) {
        if let (Ok(from), Ok(to)) = (policy(&from), policy(&to)) {
            let list = listed(&from);
            let text: String = list.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(replay(&list, &to.transition(&text)), to.clone());
            if !to.allow {
                let same: String = listed(&to).iter().map(|line| format!("{line}\n")).collect();
                prop_assert!(to.transition(&same).is_empty());
            }
        }
    }
}

#[test]
fn a_container_starts_from_nothing_allowed() {
    let policy = Policy::of_container(&[]).unwrap();
    let writes = policy.transition("a *:* rwm\n");
    assert_eq!(writes[0], ("devices.deny", "a".to_owned()));
    let allowed: Vec<_> = writes[1..].iter().map(|(file, line)| format!("{file} {line}")).collect();
    let expected = [
        "b *:* m",
        "c *:* m",
        "c 1:3 rwm",
        "c 1:5 rwm",
        "c 1:7 rwm",
        "c 1:8 rwm",
        "c 1:9 rwm",
        "c 5:0 rwm",
        "c 5:2 rwm",
        "c 10:200 rwm",
        "c 136:* rwm",
    ];
    assert_eq!(allowed, expected.map(|line| format!("devices.allow {line}")));
    let open = |kind, major, minor, access| Attempt { kind, major, minor, access }.filtered(&bytes(&policy));
    assert!(open(Kind::Char, 1, 3, Access::READ | Access::WRITE) && open(Kind::Char, 136, 77, Access::all()));
    assert!(open(Kind::Block, 8, 0, Access::MKNOD) && !open(Kind::Block, 8, 0, Access::READ));
    assert!(open(Kind::Char, 10, 200, Access::READ | Access::WRITE), "/dev/net/tun");
    assert!(!open(Kind::Char, 1, 1, Access::READ) && !open(Kind::Char, 10, 201, Access::WRITE));
}

#[test]
fn an_update_touches_only_what_differs() {
    let before = Policy::of_container(&[rule(true, "c", 10, 229, "rwm"), rule(true, "b", 8, 0, "r")]).unwrap();
    let after = Policy::of_container(&[rule(true, "c", 10, 229, "r"), rule(true, "b", 8, 16, "r")]).unwrap();
    let list: String = listed(&before).iter().map(|line| format!("{line}\n")).collect();
    let writes = after.transition(&list).into_iter().map(|(file, line)| format!("{file} {line}")).collect::<Vec<_>>();
    assert_eq!(writes, ["devices.deny b 8:0 r", "devices.deny c 10:229 wm", "devices.allow b 8:16 r"]);
}

#[test]
fn a_privileged_container_is_allowed_everything() {
    let policy = Policy::of_container(&[DeviceRule { allow: true, access: "rwm".into(), ..DeviceRule::default() }]).unwrap();
    assert!(policy.allow && policy.exceptions.is_empty());
    assert_eq!(compile(&policy).len(), 8);
}

#[test]
fn a_rule_for_all_devices_ignores_what_else_it_says() {
    let rule = |kind: &str, major, minor, access: &str| DeviceRule { allow: true, kind: kind.into(), major, minor, access: access.into() };
    for (rule, wider) in [
        (rule("a", None, None, "rwm"), false),
        (rule("a", Some(-1), Some(-1), "rwmx"), false),
        (rule("a", Some(7), Some(1), "rwm"), true),
        (rule("a", Some(7), None, "rw"), true),
        (rule("", None, None, "m"), true),
        (rule("", None, None, ""), true),
    ] {
        let denied = DeviceRule { access: "rwm".into(), ..DeviceRule::default() };
        let policy = Policy::of_container(&[denied, rule.clone()]).unwrap();
        assert!(policy.allow && policy.exceptions.is_empty(), "{rule:?}");
        assert_eq!(rule.is_wider_than_it_says(), wider, "{rule:?}");
        let denied = DeviceRule { allow: false, ..rule };
        assert!(!denied.is_wider_than_it_says());
        assert_eq!(Policy::of_container(&[denied]).unwrap(), Policy::of_container(&[]).unwrap());
    }
}

#[test]
fn letters_that_mean_nothing_are_passed_over() {
    let of = |access: &str| Policy::of_container(&[rule(true, "c", 10, 229, access)]).unwrap();
    assert_eq!(of("rwa"), of("rw"));
    assert_eq!(of("a"), Policy::of_container(&[]).unwrap());
}

#[test]
fn what_no_version_can_express_is_refused() {
    let cases = [
        (vec![rule(true, "p", 1, 1, "r")], "resources.devices[0]: \"p\" is not a type of device"),
        (vec![rule(true, "c", 1, 1, "")], "resources.devices[0]: access cannot be empty"),
        (vec![rule(true, "c", -2, 1, "r")], "-2 is not a device number"),
        (vec![rule(true, "c", 1 << 32, 1, "r")], "is not a device number"),
        (
            vec![rule(true, "b", 8, -1, "rw"), rule(false, "b", 8, 1, "w")],
            "resources.devices[1]: b 8:1 w cannot be taken out of the wider rule b 8:*",
        ),
    ];
    for (rules, text) in cases {
        let error = Policy::of_container(&rules).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}
