"""Certificates and kubeconfigs of a cluster, made with openssl."""

import json
import os
import subprocess


class Pki:
    """An authority and the certificates that it signs. `folder` gets NAME.crt and NAME.key for each."""

    def __init__(self, folder):
        self.folder = folder
        os.makedirs(folder)
        self.openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=berth-e2e",
                     "-keyout", self.path("ca.key"), "-out", self.path("ca.crt"))
        # Tokens of service accounts.
        self.openssl("genrsa", "-out", self.path("sa.key"), "2048")
        self.openssl("rsa", "-in", self.path("sa.key"), "-pubout", "-out", self.path("sa.pub"))

    def path(self, name):
        return os.path.join(self.folder, name)

    @staticmethod
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def sign(self, name, user, group=None, hosts=()):
        """Makes a certificate for a user, and for a server with these names."""
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        request = self.path(f"{name}.csr")
        self.openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", subject,
                     "-keyout", self.path(f"{name}.key"), "-out", request)
        extensions = self.path(f"{name}.ext")
        with open(extensions, "w", encoding="utf-8") as file:
            file.write("extendedKeyUsage=clientAuth,serverAuth\n")
            if hosts:
                file.write("subjectAltName=" + ",".join(hosts) + "\n")
        self.openssl("x509", "-req", "-days", "30", "-in", request, "-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key"),
                     "-CAcreateserial", "-extfile", extensions, "-out", self.path(f"{name}.crt"))

    def kubeconfig(self, name, server, user, group=None):
        """Makes a certificate for a user and returns the path of a kubeconfig with it."""
        self.sign(name, user, group)
        path = self.path(f"{name}.conf")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": {"server": server, "certificate-authority": self.path("ca.crt")}}],
            "users": [{"name": name, "user": {"client-certificate": self.path(f"{name}.crt"), "client-key": self.path(f"{name}.key")}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
            "current-context": "e2e",
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        return path
