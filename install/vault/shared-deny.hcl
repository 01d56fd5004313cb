# To be added to the policy that every other pod of the cluster shares: whatever that policy allows by a wildcard, the breakglass keys are
# not part of it. Of all the patterns of a token that fit a path Vault goes by the most specific one, and a deny wins among those of that same
# pattern only. So the keys' own path stands here as well: no grant of any other policy can be more specific.
path "secret/data/breakglass/ssh" {
  capabilities = ["deny"]
}
path "secret/metadata/breakglass/ssh" {
  capabilities = ["deny"]
}
path "secret/subkeys/breakglass/ssh" {
  capabilities = ["deny"]
}
path "secret/delete/breakglass/ssh" {
  capabilities = ["deny"]
}
path "secret/undelete/breakglass/ssh" {
  capabilities = ["deny"]
}
path "secret/destroy/breakglass/ssh" {
  capabilities = ["deny"]
}
path "secret/data/breakglass/*" {
  capabilities = ["deny"]
}
path "secret/metadata/breakglass/*" {
  capabilities = ["deny"]
}
path "secret/subkeys/breakglass/*" {
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
