//! Secrets in every spelling that QEMU and PVE take, and what must stay around them.

use super::*;
use proptest::prelude::*;

#[test]
fn secrets_of_a_configuration_are_taken_out_in_every_section() {
    let text = "ciuser: joe\ncipassword: $5$hunter2\nargs: -object secret,id=s0,data=hunter2 -spice password=hunter2 -vnc :1,password=on\n[PENDING]\ncipassword: hunter2\n[snap]\nscsi0: iscsi://joe%hunter2@10.0.0.1/x,size=1G\nnet0: virtio=AA:BB,bridge=vmbr0\n";
    let out = redact_config(text);
    assert!(!out.contains("hunter2"), "{out}");
    for kept in [
        "ciuser: joe\n",
        "id=s0",
        "password=on",
        "[PENDING]\n",
        "iscsi://joe%(redacted)@10.0.0.1/x,size=1G",
        "net0: virtio=AA:BB,bridge=vmbr0\n",
    ] {
        assert!(out.contains(kept), "{kept} in {out}");
    }
}

#[test]
fn secrets_of_a_command_line_are_taken_out_and_its_arguments_stay_apart() {
    let line = b"/usr/bin/kvm\0-id\x00102\0-object\0{\"qom-type\":\"secret\",\"data\": \"hun\\\"ter2\",\"id\":\"s\"}\0-drive\0file=rbd:p/d:id=a:key=hunter2:mon=x,password-secret=s0\0-blockdev\0{\"url\":\"https://a:hunter2@h/x\"}\0-fw_cfg\0name=opt/x,string=hunter2\0";
    let out = redact_cmdline(line);
    assert!(!out.contains("hunter2") && !out.contains("ter2"), "{out}");
    assert_eq!(out.lines().count(), 11);
    for kept in ["\"id\":\"s\"}", "mon=x,password-secret=s0", "name=opt/x"] {
        assert!(out.contains(kept), "{kept} in {out}");
    }
}

#[test]
fn what_carries_no_secret_stays_as_it_was_written() {
    let text = "#don't say password: https%3A//wiki/x\nagent: 1\ncicustom: user=local:snippets/u.yml\nargs: -name 'a  b' -device \"x,y=\\\"z\\\"\" -vnc ':1,password=on' -drive file=/a,,b,key-secret=s0 -object '{\"qom-type\":\"secret\",\"file\":\"/k\"}'\nvirtio0: local:102/a.qcow2,serial=a@b\nnet0: a=iscsi://10.0.0.1:3260/iqn:x@y\n";
    assert_eq!(redact_config(text), text);
}

#[test]
fn the_spellings_of_a_value() {
    for (text, shown) in [
        (r#"args: -spice password="hunter2" -x"#, "args: -spice password=(redacted) -x"),
        (r#"args: "-spice" 'password=hun ter2,port=1'"#, "args: \"-spice\" password=(redacted),port=1"),
        (r"args: -spice password=hun\ ter2,port=1", "args: -spice password=(redacted),port=1"),
        ("args: -spice password=a:b,port=1", "args: -spice password=(redacted),port=1"),
        ("args: -object secret,data=a,,b,id=s", "args: -object secret,data=(redacted),id=s"),
        (r#"args: -x "{\"data\":\"hunter2\",\"id\":\"s\"}""#, r#"args: -x "{\"data\":\"(redacted)\",\"id\":\"s\"}""#),
        (r#"args: -spice password="hun ter2"#, "args: -spice password=(redacted)"),
        ("args: -drive file.cookie=a=b,file.url=http://u:p@h/", "args: -drive file.cookie=(redacted),file.url=http://u:(redacted)@h/"),
        ("#password = hunter2, or so", "#password = (redacted), or so"),
        ("#https%3A//joe%3Ahunter2@h/x", "#https%3A//joe%(redacted)@h/x"),
        ("#password='hun ter2'; ask Jim", "#password='(redacted)' ask Jim"),
    ] {
        assert_eq!(redact_config(text), shown);
    }
    assert_eq!(redact_cmdline(b"-spice\0password=hun \"ter2,port=1"), "-spice\npassword=(redacted),port=1\n");
}

/// Values of which any character may be one that means something somewhere.
fn secret() -> impl Strategy<Value = String> {
    let any = prop_oneof![2 => "[A-Z0-9]{1,4}", 3 => "[\"'\\\\,:=@ {}%;#&?!$\n-]{1,3}", 1 => "[^\0]"];
    prop::collection::vec(any, 1..8).prop_map(|parts| parts.concat())
}

fn json(secret: &str) -> String {
    let quoted = serde_json::to_string(secret).unwrap();
    quoted[1..quoted.len() - 1].to_owned()
}

/// In double quotes, as PVE takes them off again.
fn quoted(secret: &str) -> String {
    secret.replace('\\', "\\\\").replace('"', "\\\"")
}

fn commas(secret: &str) -> String {
    secret.replace(',', ",,")
}

fn librbd(secret: &str) -> String {
    secret.replace('\\', "\\\\").replace(':', "\\:")
}

/// What means something, in any order.
fn pieces() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "args: ",
        "password",
        "key",
        "\"data\"",
        "\\\"data\\\"",
        "=",
        ":",
        "\"",
        "'",
        "\\",
        ",",
        " ",
        "\n",
        "x",
        "rbd:",
        "json:{",
        "}",
        "http://",
        "%3A//",
        "@",
        "io.systemd.credential:",
        "on",
        "(redacted)",
        "/",
    ];
    prop::collection::vec(prop::sample::select(PIECES), 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn of_an_argument_only_the_secret_goes(s in secret()) {
        let url = s.replace(['/', '"'], "%2F");
        for (before, value, after) in [
            ("password=", commas(&s), ",port=1"),
            ("secret,id=s0,data=", commas(&s), ""),
            ("-iscsi user=joe,password=", commas(&s), ",id=x"),
            ("name=opt/x,string=", commas(&s), ",id=x"),
            ("type=11,value=io.systemd.credential:root.pw=", commas(&s), ",value=x"),
            ("file=rbd:p/d:id=a:key=", commas(&librbd(&s)), ":mon=x,if=none"),
            ("file=https://joe:", commas(&url), "@h/x,if=none"),
            ("file=iscsi://joe%", commas(&url), "@h/x,if=none"),
        ] {
            let shown = redact_cmdline(format!("{before}{value}{after}").as_bytes());
            prop_assert_eq!(shown, format!("{before}(redacted){after}\n"), "{:?}", s);
        }
        for (before, value, after) in [
            ("{\"qom-type\":\"secret\",\"data\":\"", json(&s), "\",\"id\":\"s\"}"),
            ("{\"driver\":\"iscsi\", \"password\" : \"", json(&s), "\"}"),
            ("file=json:{\"driver\":\"iscsi\",,\"password\":\"", commas(&json(&s)), "\",,\"x\":1},if=none"),
            ("{\"file\":{\"url\":\"https://joe:", json(&url), "@h/x\"}}"),
            ("{\"file\":\"rbd:p/d:key=", json(&librbd(&s)), ""),
        ] {
            let shown = redact_cmdline(format!("{before}{value}{after}").as_bytes());
            prop_assert_eq!(shown, format!("{before}(redacted){after}\n"), "{:?}", s);
        }
    }

    #[test]
    fn of_a_configuration_only_the_secret_goes(s in secret()) {
        let s = s.replace('\n', "");
        let plain = s.replace('\\', "");
        let each: String = commas(&s).chars().flat_map(|c| ['\\', c]).collect();
        for value in [
            format!("password=\"{}\",port=1", quoted(&commas(&s))),
            format!("\"password={},port=1\"", quoted(&commas(&s))),
            format!("'password={},port=1'", commas(&plain).replace('\'', "'\\''")),
            format!("password={each},port=1"),
        ] {
            prop_assert_eq!(redact_config(&format!("args: -a b -spice {value} -x")), "args: -a b -spice password=(redacted),port=1 -x", "{}", value);
        }
        let inside = json(&s);
        let object = format!("args: -object \"{}\"", quoted(&format!("{{\"data\":\"{inside}\"}}")));
        prop_assert_eq!(redact_config(&object), "args: -object \"{\\\"data\\\":\\\"(redacted)\\\"}\"");
        let note = format!("#password=\"{}\", x", quoted(&s));
        prop_assert_eq!(redact_config(&note), "#password=\"(redacted)\", x");
        prop_assert_eq!(redact_config(&format!("cipassword: {s}")), "cipassword: (redacted)");
    }

    #[test]
    fn nothing_is_redacted_twice_nor_lost_without_a_name(text in prop_oneof!["[ -~äß\n]{0,200}", pieces()]) {
        let once = redact_config(&text);
        prop_assert_eq!(once.lines().count(), text.lines().count());
        prop_assert_eq!(redact_config(&once), once);
    }
}
