//! What must not compile: every way that we could think of to change the VM without preserved evidence, or to make a receipt
//! without a record. Each file under misuse/ is one attempt, and the compiler's words are kept beside it.

#[test]
fn misuses_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/misuse/*.rs");
}
