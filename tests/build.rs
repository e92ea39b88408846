//! Generates the client of Kubernetes' CRI from its definition, which is the one of Debian's golang-k8s-cri-api-dev 0.36.4, without a protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/cri-v1.proto");
    let files = protox::compile(["proto/cri-v1.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).type_attribute(".", "#[derive(serde::Serialize)]").compile_fds(files)?;
    Ok(())
}
