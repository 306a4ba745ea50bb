package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

const (
	// localDriver is the local storage driver's name, which is also what tokens for its lists of changes are made for.
	localDriver = "local.csi.lifeboat.dev"
	// metadataService is the Service of its lists, and the Secret with the certificate they are served under.
	metadataService = "lifeboat-csi-metadata"
	metadataPort    = "6443"
	// metadataCertificateFor is how long that certificate is valid; an install makes another once less than a third is left.
	metadataCertificateFor = 3 * 365 * 24 * time.Hour
)

// serveMetadata makes known where the local storage driver lists changed blocks, and under which certificate. The address is
// the Service's own, so that clusters without names for services can use it.
func serveMetadata(ctx context.Context, c client.Client, now time.Time, out io.Writer) error {
	var service corev1.Service
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: metadataService}
	if err := c.Get(ctx, key, &service); err != nil {
		return fmt.Errorf("read Service %s: %w", key, err)
	}
	certificate, err := keepCertificate(ctx, c, key, service.Spec.ClusterIP, now)
	if err != nil {
		return err
	}
	kind := snapshot.MetadataServiceKind
	if _, err := c.RESTMapper().RESTMapping(kind.GroupKind(), kind.Version); meta.IsNoMatchError(err) {
		fmt.Fprintf(out, "this cluster does not know the kind %s (%s): sessions will read whole volumes to find what changed; apply its definition and install again to use lists of changed blocks\n", kind.Kind, kind.GroupVersion())
		return nil
	}
	object := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{
		"address": net.JoinHostPort(service.Spec.ClusterIP, metadataPort), "audience": localDriver, "caCert": base64.StdEncoding.EncodeToString(certificate),
	}}}
	object.SetGroupVersionKind(kind)
	object.SetName(localDriver)
	object.SetLabels(map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat})
	return applyObject(ctx, c, object)
}

// keepCertificate returns the certificate in the Secret, made anew when there is none that will do.
func keepCertificate(ctx context.Context, c client.Client, key client.ObjectKey, address string, now time.Time) ([]byte, error) {
	names := []string{key.Name, key.Name + "." + key.Namespace, key.Name + "." + key.Namespace + ".svc"}
	var secret corev1.Secret
	err := c.Get(ctx, key, &secret)
	missing := apierrors.IsNotFound(err)
	switch {
	case missing:
		secret = corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name,
			Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByLifeboat}}, Type: corev1.SecretTypeTLS}
	case err != nil:
		return nil, fmt.Errorf("read Secret %s: %w", key, err)
	case serves(secret.Data, append(names, address), now):
		return secret.Data[corev1.TLSCertKey], nil
	}
	if secret.Data, err = selfSigned(names, net.ParseIP(address), now); err != nil {
		return nil, fmt.Errorf("make a certificate for Service %s: %w", key, err)
	}
	if missing {
		err = c.Create(ctx, &secret)
	} else {
		err = c.Update(ctx, &secret)
	}
	if err != nil {
		return nil, fmt.Errorf("keep the certificate in Secret %s: %w", key, err)
	}
	return secret.Data[corev1.TLSCertKey], nil
}

// serves reports whether a certificate is good for all these hosts for long enough.
func serves(data map[string][]byte, hosts []string, now time.Time) bool {
	pair, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return false
	}
	for _, host := range hosts {
		if pair.Leaf.VerifyHostname(host) != nil {
			return false
		}
	}
	return !now.Before(pair.Leaf.NotBefore) && pair.Leaf.NotAfter.Sub(now) > metadataCertificateFor/3
}

// selfSigned makes a key and a certificate that vouches for itself and for nothing else: there is no key of an authority that
// somebody could find.
func selfSigned(names []string, address net.IP, now time.Time) (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(metadataCertificateFor), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if address != nil {
		template.IPAddresses = []net.IP{address}
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}, nil
}
