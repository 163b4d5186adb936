<?xml version="1.0"?>
<!-- A customer's order becomes a request to the shop. -->
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:template match="/order" priority="1">
    <xsl:if test="not(line)">
      <xsl:message terminate="yes">an order needs at least one line</xsl:message>
    </xsl:if>
    <request customer="{normalize-space(customer)}">
      <xsl:apply-templates select="line"/>
    </request>
  </xsl:template>

  <xsl:template match="line">
    <xsl:if test="not(number(@quantity) &gt; 0) or number(@quantity) != floor(number(@quantity))">
      <xsl:message terminate="yes">
        <xsl:text>a quantity must be a whole number above 0, not </xsl:text>
        <xsl:value-of select="@quantity"/>
      </xsl:message>
    </xsl:if>
    <item sku="{@sku}"><xsl:value-of select="format-number(@quantity, '0')"/></item>
  </xsl:template>

  <xsl:template match="/*">
    <xsl:message terminate="yes">this takes an order, and not: <xsl:value-of select="name()"/></xsl:message>
  </xsl:template>
</xsl:stylesheet>
