// A certified OpenID provider for the suite: opaque and signed access tokens for resources, introspection, revocation.
// Prints its issuer on standard output once it listens; ends with its standard input.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { generateKeyPairSync } from "node:crypto";
import { pathToFileURL } from "node:url";

const modules = createRequire(`${process.argv[2]}/`);
const { Provider } = await import(pathToFileURL(modules.resolve("oidc-provider")));

const key = (kind, options, alg) => ({
  ...generateKeyPairSync(kind, options).privateKey.export({ format: "jwk" }), use: "sig", alg, kid: `key-${alg}`,
});
const keys = [
  key("rsa", { modulusLength: 2048 }, "RS256"),
  key("ec", { namedCurve: "P-256" }, "ES256"),
  key("ed25519", {}, "EdDSA"),
];
const client = (id) => ({
  client_id: id, client_secret: "cl:ent s3cret/", application_type: "native",
  redirect_uris: ["http://127.0.0.1/back"], grant_types: ["authorization_code", "refresh_token", "client_credentials"],
});
const server = createServer().listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [...["gateway", "opaque", "RS256", "ES256", "EdDSA"].map(client)],
    jwks: { keys },
    cookies: { keys: ["a key of cookies for a test"] },
    scopes: ["openid", "offline_access"],
    pkce: { required: () => false },
    findAccount: (context, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    features: {
      devInteractions: { enabled: true },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      revocation: { enabled: true, allowedPolicy: () => true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => [],
        useGrantedResource: () => true,
        getResourceServerInfo: (context, resource, { clientId }) => ({
          scope: "openid system:read service:write",
          audience: resource,
          accessTokenTTL: 300,
          ...(clientId === "opaque" ? { accessTokenFormat: "opaque" }
            : { accessTokenFormat: "jwt", jwt: { sign: { alg: clientId, kid: `key-${clientId}` } } }),
        }),
      },
    },
  });
  server.on("request", provider.callback());
  process.stdout.write(`${issuer}\n`);
});
process.stdin.on("end", () => process.exit(0)).resume();
