# To be added to the policy that every other pod of the cluster shares: whatever that policy allows by a wildcard, the breakglass keys are
# not part of it. In Vault an explicit deny wins over every grant of any other policy of the same token.
path "secret/data/breakglass/*" {
  capabilities = ["deny"]
}
path "secret/metadata/breakglass/*" {
  capabilities = ["deny"]
}
path "secret/delete/breakglass/*" {
  capabilities = ["deny"]
}
path "secret/undelete/breakglass/*" {
  capabilities = ["deny"]
}
path "secret/destroy/breakglass/*" {
  capabilities = ["deny"]
}
