package localcsi

import (
	"os"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
)

// TestSanity runs the whole suite of the CSI community, once for volumes with a file system and once for block
// volumes, against a driver on a real pool.
func TestSanity(t *testing.T) {
	n := newNode(t)
	config := func(kind string) *sanity.TestConfig {
		c := sanity.NewTestConfig()
		c.Address = "unix://" + n.path("csi.sock")
		c.TargetPath, c.StagingPath = n.path(kind+"-target"), n.path(kind+"-staging")
		c.TestVolumeAccessType = kind
		c.TestVolumeSize, c.TestVolumeExpandSize = 64*mib, 128*mib
		return &c
	}
	gomega.RegisterFailHandler(ginkgo.Fail)
	for _, kind := range []string{"mount", "block"} {
		ginkgo.Describe(kind+" volumes", func() { sanity.GinkgoTest(config(kind)) })
	}
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct, reporter.NoColor = !testing.Verbose(), true
	ginkgo.RunSpecs(t, "csi-sanity", suite, reporter)
	n.nothingAttached()
	left, err := os.ReadDir(n.path("pool", "mnt", "volumes"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("%d volumes remain", len(left))
	}
}
