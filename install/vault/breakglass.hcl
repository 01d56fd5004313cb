# Policy `breakglass`: exactly the breakglass keys, and nothing else. Bound to the role of the same name.
path "secret/data/breakglass/ssh" {
  capabilities = ["read"]
}
